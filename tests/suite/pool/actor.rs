//! A client of the random run: takes the steps that its seed gives and writes into the ledger what
//! it did and what it found wrong on the way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfygate::sim::image_of_seed;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::asking::Http;
use super::ear::{Ear, Manner};
use super::ledger::{Entry, Ledger};
use super::step::{Order, Plan, Profile, Step, graph};

/// Prompts of a run at most: fewer than a history holds.
const MOST_PROMPTS: usize = 9_000;

/// A client that acts no more, and its sockets.
pub(crate) type Listening = (Profile, Ear);

/// One client at work.
pub(crate) struct Client {
    profile: Profile,
    ear: Ear,
    http: Http,
    ledger: Arc<Ledger>,
    /// Its accepted prompts, in order, with the furthest state that it has read of each.
    prompts: Vec<(String, u8)>,
    last_paced: Option<Plan>,
    /// Its last upload: the name the server gave and the picture's seed.
    upload: Option<(String, u64)>,
    uploads: usize,
}

impl Client {
    pub(crate) async fn connect(base: &str, profile: Profile, ledger: Arc<Ledger>) -> Self {
        let address = base.trim_start_matches("http://").parse().unwrap();
        let http = Http::new(base, &profile.address);
        let mut ear = Ear::new(address, profile.clone());
        ear.open().await;
        let (prompts, last_paced, upload) = (Vec::new(), None, None);
        Self { profile, ear, http, ledger, prompts, last_paced, upload, uploads: 0 }
    }

    /// Steps and pauses until it is time; ends with a socket open.
    pub(crate) async fn live(
        mut self,
        mut random: StdRng,
        until: Instant,
        pause_ms: u64,
    ) -> Listening {
        while Instant::now() < until {
            let step = Step::draw(&mut random);
            let pause = Duration::from_millis(random.random_range(0..pause_ms));
            self.take(step).await;
            tokio::time::sleep(pause).await;
        }
        (self.profile, self.ear)
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Post(orders) => {
                for order in orders {
                    self.post(order).await;
                }
            }
            Step::Upload(seed) => self.upload(seed).await,
            Step::Delete(back) => self.delete(back).await,
            Step::Interrupt(back) => self.interrupt(back).await,
            Step::InterruptAny => {
                self.ledger.interrupt(&self.profile.address);
                self.http.post("/interrupt", &json!({})).await;
            }
            Step::Forget(back) => self.forget(back).await,
            Step::ReadJob(back) => self.read_job(back).await,
            Step::ReadQueue => self.read_queue().await,
            Step::Break { reset, away, post } => {
                self.ear.end(Manner::Abrupt(reset)).await;
                if let Some(order) = post {
                    self.post(order).await;
                }
                tokio::time::sleep(away).await;
                self.ear.open().await;
            }
            Step::Replace => self.ear.replace().await,
            Step::Leave { away } => {
                self.ear.end(Manner::Polite).await;
                tokio::time::sleep(away).await;
                self.ear.open().await;
            }
        }
    }

    async fn post(&mut self, order: Order) {
        let plan = match order.plan {
            // One of nobody leaves what a cache gives it out of history.
            Plan::Repeat if self.profile.anonymous => return,
            Plan::Repeat => match self.last_paced.clone() {
                Some(plan) => plan,
                None => return,
            },
            Plan::Load if self.upload.is_none() => return,
            plan => plan,
        };
        if self.ledger.count() >= MOST_PROMPTS {
            return;
        }
        let (image, loaded) = self.upload.clone().unzip();
        let mut body = json!({"prompt": graph(&plan, image.as_deref().unwrap_or_default())});
        let client_id = if self.profile.anonymous { None } else { self.ear.sid.clone() };
        if let Some(id) = &client_id {
            body["client_id"] = id.as_str().into();
        }
        if let Some(number) = order.number {
            body["number"] = number.into();
        } else if order.front {
            body["front"] = true.into();
        }
        let id = uuid::Uuid::new_v4().to_string();
        if order.named {
            body["prompt_id"] = id.as_str().into();
        }
        let entry = Entry {
            client: self.profile.index,
            address: self.profile.address.clone(),
            client_id,
            ..Entry::new(&plan, loaded)
        };
        let (status, reply) = self.http.post("/prompt", &body).await;
        self.posted(&plan, (status, &reply), entry, order.named.then_some(&id));
    }

    /// Notes what became of a prompt, and that the reply was right.
    fn posted(&mut self, plan: &Plan, told: (u16, &Value), entry: Entry, asked: Option<&String>) {
        let (status, reply) = told;
        let errors = reply["node_errors"].as_object().is_some_and(|errors| !errors.is_empty());
        let right = match plan {
            Plan::Invalid(_) => status == 400 && reply["error"]["type"].is_string(),
            Plan::Partly { .. } => status == 200 && errors,
            _ => status == 200 && !errors,
        };
        let id = reply["prompt_id"].as_str();
        if !right || (status == 200 && asked.is_some_and(|asked| id != Some(asked))) {
            self.ledger.problem(format!("{plan:?} was answered with {status} {reply}"));
        }
        match (status, id) {
            (200, Some(id)) => {
                self.ledger.add(id, entry);
                self.prompts.push((id.to_owned(), 0));
                if matches!(plan, Plan::Paced { .. }) {
                    self.last_paced = Some(plan.clone());
                }
            }
            _ => asked.into_iter().for_each(|id| self.ledger.refuse(id)),
        }
    }

    async fn upload(&mut self, seed: u64) {
        self.uploads += 1;
        // Names are taken again now and then, so that servers must rename.
        let name = format!("of-{}-{}.png", self.profile.index / 2, self.uploads % 3);
        let name = self.http.upload(&name, image_of_seed(seed)).await;
        self.upload = Some((name, seed));
    }

    /// The client's own prompt, so far back from its last.
    fn own(&self, back: usize) -> Option<usize> {
        self.prompts.len().checked_sub(back + 1)
    }

    async fn delete(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let id = &self.prompts[index].0;
        self.ledger.change(id, |entry| entry.deleted = true);
        self.http.post("/queue", &json!({"delete": [id]})).await;
    }

    async fn interrupt(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let id = &self.prompts[index].0;
        self.ledger.change(id, |entry| entry.interrupted = true);
        self.http.post("/interrupt", &json!({"prompt_id": id})).await;
    }

    /// Deletes a prompt from history, if it has ended.
    async fn forget(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let id = &self.prompts[index].0;
        let (_, found) = self.http.get(&format!("/history/{id}")).await;
        let Some(told) = found.get(id).cloned() else { return };
        self.ledger.change(id, |entry| entry.forgotten = Some(told));
        self.http.post("/history", &json!({"delete": [id]})).await;
    }

    /// Reads of a job's state must never go back.
    async fn read_job(&mut self, back: usize) {
        let Some(index) = self.own(back) else { return };
        let (id, before) = self.prompts[index].clone();
        let (status, job) = self.http.get(&format!("/api/jobs/{id}")).await;
        let entry = self.ledger.get(&id).unwrap();
        let state = job["status"].as_str().unwrap_or_default();
        let now = match (status, state) {
            (404, _) if entry.deleted || entry.interrupted || entry.forgotten.is_some() => return,
            (200, "pending") => 0,
            (200, "in_progress") => 1,
            (200, "completed" | "failed" | "cancelled") => 2,
            _ => {
                self.ledger.problem(format!("/api/jobs/{id} says {status} {job} of {entry:?}"));
                return;
            }
        };
        if now < before {
            self.ledger.problem(format!("{id} was in state {before} and is {state} now"));
        }
        self.prompts[index].1 = now;
    }

    /// Nobody stands in the queue twice, nor under another's name.
    async fn read_queue(&mut self) {
        let (_, queue) = self.http.get("/queue").await;
        let mut seen = BTreeSet::new();
        for list in ["queue_running", "queue_pending"] {
            for item in queue[list].as_array().into_iter().flatten() {
                let id = item[1].as_str().unwrap_or_default();
                if !seen.insert(id) {
                    self.ledger.problem(format!("/queue lists {id} twice"));
                }
                let named = item[3].get("client_id").and_then(Value::as_str);
                if self.ledger.get(id).is_some_and(|e| e.client_id.as_deref() != named) {
                    self.ledger.problem(format!("/queue says {named:?} for {id}"));
                }
            }
        }
    }
}
