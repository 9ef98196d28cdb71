//! `POST /prompt`: a prompt becomes a job once a server has judged it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::super::Pool;
use super::super::ask::Passed;
use super::super::core::Input;
use super::super::dispatch::now_ms;
use super::super::errands::TIMEOUT;
use super::super::job::{Job, JobId, Needs, Owner};
use super::super::submission::{self, Number, Parsed, Submission};
use super::super::visit::Visit;
use super::json;
use crate::config::Priority;
use crate::rejection::{Kind, Rejection};

/// Bytes of prompts that the gateway holds at most, waiting ones included.
const MAX_HELD: u64 = 2 << 30;

/// What the client of a prompt is told.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The backend's 200, with the gateway's number and id.
    Accepted {
        /// The body.
        reply: Bytes,
        /// Its name, where clients may see it.
        by: Option<Arc<str>>,
    },
    /// The backend's refusal.
    Server {
        /// Its name, where clients may see it.
        by: Option<Arc<str>>,
        /// Its status.
        status: u16,
        /// Its `Content-Type`.
        content_type: Option<String>,
        /// Its body.
        body: Bytes,
    },
    /// The gateway's.
    Refused(Rejection),
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::Accepted { reply, by } => named(json(reply), by.as_deref()),
            Self::Server { by, status, content_type, body } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                let mut response = (status, body).into_response();
                let value = content_type.and_then(|text| HeaderValue::from_str(&text).ok());
                if let Some(value) = value {
                    response.headers_mut().insert(header::CONTENT_TYPE, value);
                }
                named(response, by.as_deref())
            }
            Self::Refused(refused) => refused.into_response(),
        }
    }
}

/// Says which backend an answer came from.
fn named(mut response: Response, by: Option<&str>) -> Response {
    if let Some(value) = by.and_then(|name| HeaderValue::from_str(name).ok()) {
        response.headers_mut().insert("x-comfygate-backend", value);
    }
    response
}

/// Prompts whose verdict is still out, by the id that their client knows: the same prompt posted
/// again meanwhile gets the same answer.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<Arc<str>, Flight>>);

#[derive(Debug, Clone)]
struct Flight {
    fingerprint: [u8; 32],
    answer: watch::Receiver<Option<Answer>>,
}

/// Takes a prompt's entry out of the map when its request is over, however that came.
struct Landing<'a> {
    flights: &'a InFlight,
    id: Arc<str>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.id);
    }
}

/// The handler.
pub(super) async fn post(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    body: Body,
) -> Response {
    // Its bytes count from the first one; as a job's they are counted anew.
    let mut reading = Reading { held: &pool.held, bytes: 0 };
    let body = match reading.whole(body).await {
        Ok(body) => body,
        Err(refused) => return refused.into_response(),
    };
    match read(&body).await {
        Parsed::Job(submission) => match pool.submit(visit, body, &submission, reading).await {
            Ok(answer) => answer.into_response(),
            Err(refused) => refused.into_response(),
        },
        // What is no prompt at all, a server shall say in its own words.
        Parsed::Hopeless => pool.put_to_anyone(body).await.into_response(),
        Parsed::Refused(refused) => refused.into_response(),
    }
}

/// Counts the bytes of a body while it comes in.
struct Reading<'a> {
    held: &'a AtomicU64,
    bytes: u64,
}

impl Reading<'_> {
    async fn whole(&mut self, body: Body) -> Result<Bytes, Rejection> {
        let mut pieces = body.into_data_stream();
        let mut whole = Vec::new();
        while let Some(piece) = pieces.next().await {
            // Whoever streams it in bounds its size.
            let Ok(piece) = piece else {
                return Err(Rejection::new(Kind::BadRequest, "the prompt broke off"));
            };
            let bytes = piece.len() as u64;
            self.bytes += bytes;
            if self.held.fetch_add(bytes, Relaxed) + bytes > MAX_HELD {
                return Err(too_much());
            }
            whole.extend_from_slice(&piece);
        }
        // It may wait for hours: exactly as long as it is.
        Ok(whole.into_boxed_slice().into())
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Relaxed);
    }
}

fn too_much() -> Rejection {
    let message = "the prompts that wait are too large for the gateway's memory";
    Rejection::new(Kind::QueueFull, message).cure("try again later").retry_after(30)
}

/// Reads a body; a large one beside the threads that serve others.
async fn read(body: &Bytes) -> Parsed {
    if body.len() < submission::LARGE {
        return submission::parse(body);
    }
    let body = body.clone();
    let read = tokio::task::spawn_blocking(move || submission::parse(&body)).await;
    read.unwrap_or(Parsed::Hopeless)
}

/// By what a body is known again, reckoned on a thread of its own when it is large.
async fn fingerprint(body: &Bytes) -> [u8; 32] {
    if body.len() < submission::LARGE {
        return submission::fingerprint(body);
    }
    let hashed = body.clone();
    let hashed = tokio::task::spawn_blocking(move || submission::fingerprint(&hashed)).await;
    hashed.unwrap_or_else(|_| submission::fingerprint(body))
}

impl Pool {
    async fn submit(
        self: &Arc<Self>,
        visit: Visit,
        body: Bytes,
        submission: &Submission,
        reading: Reading<'_>,
    ) -> Result<Answer, Rejection> {
        self.is_here().await?;
        let prompt_id = submission.prompt_id.clone();
        let prompt_id = prompt_id.unwrap_or_else(|| Uuid::new_v4().to_string().into());
        let fingerprint = fingerprint(&body).await;
        let sender = match self.board(&prompt_id, fingerprint)? {
            Boarding::New(sender) => sender,
            Boarding::Again(before) => return Ok(before.answer().await),
        };
        let _landing = Landing { flights: &self.flights, id: Arc::clone(&prompt_id) };
        let id = JobId(self.next_job.fetch_add(1, Relaxed));
        let _turn = self.admit(visit.key, id)?;
        let job = self.job_of(id, visit, body, submission, prompt_id);
        self.fingerprints.lock().insert(job.id, fingerprint);
        drop(reading);
        let answer = self.judged(Arc::clone(&job)).await;
        if let Answer::Server { status: 400, .. } = &answer {
            self.note_lacks(&job);
        }
        sender.send_replace(Some(answer.clone()));
        Ok(answer)
    }

    /// Hands a job in and waits for the verdict. The request may be dropped meanwhile; the job
    /// goes on, as in ComfyUI.
    async fn judged(self: &Arc<Self>, job: Arc<Job>) -> Answer {
        let (sender, answer) = oneshot::channel();
        self.verdicts.lock().insert(job.id, sender);
        self.retell.lock().open(job.id);
        self.held.fetch_add(job.body.len() as u64, Relaxed);
        self.tell(Input::Submit(job));
        answer.await.unwrap_or_else(|_| {
            Answer::Refused(
                Rejection::new(Kind::NoBackend, "the gateway is stopping").retry_after(5),
            )
        })
    }

    fn job_of(
        &self,
        id: JobId,
        visit: Visit,
        body: Bytes,
        submission: &Submission,
        prompt_id: Arc<str>,
    ) -> Arc<Job> {
        let mut needs = submission.needs.clone();
        needs.task_type = visit.task_type.or(needs.task_type);
        let once = submission.wishes.once || self.has_no_retry_node(&needs);
        Arc::new(Job {
            id,
            prompt_id,
            owner: Owner {
                key: visit.key,
                caller: visit.caller,
                client_id: submission.client_id.clone(),
            },
            number: submission.number(&self.counter).value(),
            priority: match self.config.load().queue.priority {
                // Everybody may step back.
                Priority::Off => submission.wishes.priority.min(0),
                Priority::ExtraData => submission.wishes.priority,
            },
            needs: self.needs.of(needs),
            kind: submission.kind.clone(),
            zone: visit.zone,
            once,
            created_ms: now_ms(),
            body,
        })
    }

    fn has_no_retry_node(&self, needs: &Needs) -> bool {
        let config = self.config.load();
        config.pool.no_retry_nodes.iter().any(|node| needs.nodes.contains(node.as_str()))
    }

    /// Asks any server for its words on a body that none takes.
    async fn put_to_anyone(&self, body: Bytes) -> Answer {
        let view = self.fleet.view().clone();
        let up = view.backends.iter().filter(|backend| backend.live.standing().is_healthy());
        for backend in up.take(3) {
            if let Some(passed) = self.ask.pass_on(backend, body.clone(), TIMEOUT).await {
                let Passed { status, content_type, body } = passed;
                let by = self.named_in_replies(backend.id);
                return Answer::Server { by, status, content_type, body };
            }
        }
        let message = "no ComfyUI server answers at the moment";
        Answer::Refused(Rejection::new(Kind::NoBackend, message).retry_after(5))
    }

    /// Takes an id for a prompt, unless it is in use: by the same prompt, whose answer stands, or
    /// by another one.
    fn board(&self, id: &Arc<str>, fingerprint: [u8; 32]) -> Result<Boarding, Rejection> {
        let mut flights = self.flights.0.lock();
        let flight = flights.get(id).cloned();
        let flight = flight.map(|flight| (flight.fingerprint, Before::Judging(flight.answer)));
        let before = flight.or_else(|| self.open_before(id)).or_else(|| self.ended_before(id));
        match before {
            None => {
                let (sender, answer) = watch::channel(None);
                flights.insert(Arc::clone(id), Flight { fingerprint, answer });
                Ok(Boarding::New(sender))
            }
            Some((theirs, before)) if theirs == fingerprint => Ok(Boarding::Again(before)),
            Some(_) => {
                let message = "this prompt_id belongs to another prompt";
                Err(Rejection::new(Kind::Conflict, message).cure("send another prompt_id, or none"))
            }
        }
    }

    fn open_before(&self, id: &str) -> Option<([u8; 32], Before)> {
        let view = {
            let core = self.core.lock();
            core.find(id).and_then(|id| core.get(id))?
        };
        let reply = submission::reply(&view.reply, id, Number::of(&view.job));
        Some((self.fingerprint_of(&view.job), Before::Judged(Answer::Accepted { reply, by: None })))
    }
}

/// Whether a prompt is new.
enum Boarding {
    /// It is; whoever posts it again meanwhile waits for what is sent here.
    New(watch::Sender<Option<Answer>>),
    /// It is not.
    Again(Before),
}

/// An answer to the same prompt posted before.
pub(super) enum Before {
    /// It is still out.
    Judging(watch::Receiver<Option<Answer>>),
    /// It was given.
    Judged(Answer),
}

impl Before {
    async fn answer(self) -> Answer {
        match self {
            Self::Judged(answer) => answer,
            Self::Judging(mut answer) => match answer.wait_for(Option::is_some).await {
                Ok(answer) => answer.clone().unwrap_or_else(interrupted),
                Err(_) => interrupted(),
            },
        }
    }
}

fn interrupted() -> Answer {
    Answer::Refused(Rejection::new(Kind::NoBackend, "the prompt was not judged").retry_after(1))
}
