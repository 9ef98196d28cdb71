//! Handing a prompt over, and what the answer means.
//!
//! | Answer | Verdict |
//! |---|---|
//! | none, no connection was made | not sent |
//! | none, or it breaks off | unknown |
//! | 2xx with a `prompt_id` | accepted |
//! | 2xx with anything else | unknown |
//! | 400, 413, 422 | refused |
//! | 500 | see below |
//! | 502, 504 | the backend is asked: not there, or it does not say: not sent; else unknown. 504 without an answer: unknown |
//! | anything else | not sent |
//!
//! ComfyUI answers 500 when a body makes it raise, and then it has nothing; but also, the prompt
//! queued, when number and id are those of a waiting one. So the backend is asked. It does not
//! know the prompt: the 500 is its word on it, and passed on as a refusal. It knows it: unknown. It
//! does not say: it answers 500 to everything, and counts as not having taken it.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Response};

use super::{Ask, MAX_REPLY, Silence, send, whole};
use crate::backend::Backend;
use crate::comfy::class::Class;
use crate::outlier::Evidence;
use crate::pool::core::{Known, Verdict};
use crate::pool::submission::accepted_id;
use crate::retry::Failure;

/// Time for a backend to say whether it knows a prompt that it answered with an error.
const SECOND_THOUGHT: Duration = Duration::from_secs(3);

/// An answer to be passed on as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Its status.
    pub status: u16,
    /// Its `Content-Type`.
    pub content_type: Option<String>,
    /// Its body.
    pub body: Bytes,
}

impl Ask {
    /// Posts a prompt, whose id in the body is `id`. The body leaves at most once.
    pub async fn post_prompt(
        &self,
        backend: &Backend,
        id: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Verdict {
        match self.handed_over(backend, body, timeout).await {
            Ok(answer) => self.judged(backend, id, answer).await,
            Err(Silence::Unreached) => Verdict::NotSent,
            Err(Silence::Lost | Silence::Useless) => Verdict::Unknown,
        }
    }

    /// Posts a body that no server takes, for its words on it. `None` when it does not answer.
    pub async fn pass_on(
        &self,
        backend: &Backend,
        body: Bytes,
        timeout: Duration,
    ) -> Option<Passed> {
        let response = self.handed_over(backend, body, timeout).await.ok()?;
        passed(response).await.ok()
    }

    async fn handed_over(
        &self,
        backend: &Backend,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Response, Silence> {
        let answer = send(&self.alone, backend, Method::POST, "/prompt", Some(body), timeout).await;
        let seen = match &answer {
            Ok(answer) => Evidence::of_status(Class::Control, answer.status().as_u16()),
            Err(silence) => Evidence::of_failure(Class::Control, failure(*silence), true),
        };
        if let (Some(warden), Some(seen)) = (&self.warden, seen) {
            warden.saw(backend, seen);
        }
        answer
    }

    async fn judged(&self, backend: &Backend, id: &str, response: Response) -> Verdict {
        let status = response.status();
        match status {
            status if status.is_success() => match passed(response).await {
                Ok(answer) if accepted_id(&answer.body).is_some() => Verdict::Accepted(answer.body),
                _ => Verdict::Unknown,
            },
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => {
                passed(response).await.map_or(Verdict::NotSent, refused)
            }
            StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT => self.second_thought(backend, id, response).await,
            _ => Verdict::NotSent,
        }
    }

    async fn second_thought(&self, backend: &Backend, id: &str, response: Response) -> Verdict {
        let status = response.status();
        let answer = passed(response).await;
        let (known, _) = self.know(backend, id, SECOND_THOUGHT).await;
        match (known, status, answer) {
            (Known::Absent, StatusCode::INTERNAL_SERVER_ERROR, Ok(answer)) => refused(answer),
            (Known::Absent, _, _) => Verdict::NotSent,
            (Known::Unknown, StatusCode::GATEWAY_TIMEOUT, _) => Verdict::Unknown,
            (Known::Unknown, _, _) => Verdict::NotSent,
            (Known::Pending | Known::Running | Known::Ended { .. }, _, _) => Verdict::Unknown,
        }
    }
}

fn failure(silence: Silence) -> Failure {
    match silence {
        Silence::Unreached => Failure::Connect,
        Silence::Lost => Failure::Reset,
        Silence::Useless => Failure::Timeout,
    }
}

fn refused(answer: Passed) -> Verdict {
    let Passed { status, content_type, body } = answer;
    Verdict::Refused { status, content_type, body }
}

async fn passed(response: Response) -> Result<Passed, Silence> {
    let content_type = response.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let status = response.status().as_u16();
    Ok(Passed { status, content_type, body: whole(response, MAX_REPLY).await? })
}
