//! The one worker: takes the prompt that is first in the heap, runs its nodes and says so in the
//! recorded frames and their order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::Core;
use super::graph::{Made, NodeCache, Plan};
use super::nodes::recorded;
use super::perform::Stop;
use super::progress::Progress;
use super::queue::{Finished, Item};

/// Runs prompts until the server ends.
pub(super) async fn work(core: Arc<Core>) {
    let mut cache = NodeCache::default();
    loop {
        if core.free_memory.swap(false, Ordering::Relaxed) {
            cache = NodeCache::default();
        }
        let Some((item, era)) = core.take_next() else {
            tokio::select! {
                () = core.wake.notified() => continue,
                () = core.life.cancelled() => return,
            }
        };
        let started = Instant::now();
        tokio::select! {
            finished = run(&core, &item, &mut cache) => {
                core.finish(&item, finished);
                let seconds = started.elapsed().as_secs_f64();
                core.log(&format!("Prompt executed in {seconds:.2} seconds\n"));
            }
            // What was forgotten leaves no trace, not even in the cache.
            () = era.cancelled() => cache = NodeCache::default(),
            () = core.life.cancelled() => return,
        }
    }
}

/// One prompt while it runs.
pub(super) struct Run<'a> {
    /// The server.
    pub(super) core: &'a Core,
    /// The prompt.
    pub(super) item: &'a Item,
    /// The client that hears of it.
    pub(super) client: Option<&'a str>,
    /// State of the nodes that have started.
    pub(super) progress: Progress,
    messages: Vec<Value>,
    executed: Vec<String>,
    outputs: Map<String, Value>,
    meta: Map<String, Value>,
    results: HashMap<String, Arc<Made>>,
}

async fn run(core: &Core, item: &Arc<Item>, cache: &mut NodeCache) -> Finished {
    core.interrupt(false);
    core.set_current(item.client(), None);
    let mut run = Run {
        core,
        item,
        client: item.client(),
        progress: Progress::default(),
        messages: Vec::new(),
        executed: Vec::new(),
        outputs: Map::new(),
        meta: Map::new(),
        results: HashMap::new(),
    };
    run.message("execution_start", json!({"prompt_id": item.id}), false);
    cache.enter(&item.prompt, &|name| core.files.image_stamp(name));
    let cached = cache.cached(&item.prompt);
    run.message("execution_cached", json!({"nodes": cached, "prompt_id": item.id}), false);
    let completed = run.nodes(cache).await;
    if completed {
        run.message("execution_success", json!({"prompt_id": item.id}), false);
    }
    core.set_current(item.client(), None);
    run.finished(item, completed)
}

impl Run<'_> {
    async fn nodes(&mut self, cache: &mut NodeCache) -> bool {
        let mut plan = Plan::new(self.item, cache);
        while let Some(id) = plan.next() {
            match cache.get(&id) {
                Some(made) => self.reuse(&id, &made),
                None => match self.node(&id, cache).await {
                    Ok(made) => cache.put(&id, made),
                    Err(stop) => {
                        self.stopped(&id, stop);
                        return false;
                    }
                },
            }
            plan.done(&id);
        }
        true
    }

    /// A cached output node: told again, without having run.
    fn reuse(&mut self, id: &str, made: &Arc<Made>) {
        if self.client.is_some() {
            let output = made.ui.as_ref().map(|(_, output)| output);
            self.tell(
                "executed",
                json!({"node": id, "display_node": id, "output": output, "prompt_id": self.item.id}),
            );
            // Upstream keeps cached results from the history of a prompt without a client.
            self.keep_ui(id, made);
        }
        self.progress.finish(id);
        self.send_progress();
    }

    async fn node(&mut self, id: &str, cache: &NodeCache) -> Result<Arc<Made>, Stop> {
        self.progress.start(id);
        self.send_progress();
        if self.client.is_some() {
            self.core.set_current(self.client, Some(id));
            self.tell(
                "executing",
                json!({"node": id, "display_node": id, "prompt_id": self.item.id}),
            );
        }
        if self.core.interrupted() {
            return Err(Stop::Interrupted);
        }
        let made = Arc::new(self.perform(id, cache).await?);
        if let Some((_, output)) = &made.ui {
            self.tell(
                "executed",
                json!({"node": id, "display_node": id, "output": output, "prompt_id": self.item.id}),
            );
            self.keep_ui(id, &made);
        }
        self.progress.finish(id);
        self.send_progress();
        self.executed.push(id.to_owned());
        self.results.insert(id.to_owned(), made.clone());
        Ok(made)
    }

    /// The result of the node a link names: from this run, or from the cache.
    pub(super) fn linked(&self, link: &Value, cache: &NodeCache) -> Option<Arc<Made>> {
        let from = link.get(0)?.as_str()?;
        self.results.get(from).cloned().or_else(|| cache.get(from))
    }

    fn keep_ui(&mut self, id: &str, made: &Made) {
        if let Some((meta, output)) = &made.ui {
            self.outputs.insert(id.to_owned(), output.clone());
            self.meta.insert(id.to_owned(), meta.clone());
        }
    }

    fn stopped(&mut self, id: &str, stop: Stop) {
        let class_type = &self.item.prompt[id]["class_type"];
        let mut data = json!({
            "prompt_id": self.item.id, "node_id": id,
            "node_type": class_type, "executed": self.executed,
        });
        let Stop::Failed { kind, message } = stop else {
            return self.message("execution_interrupted", data, true);
        };
        let all: Vec<&String> = self.item.prompt.keys().rev().collect();
        data["exception_message"] = message.into();
        data["exception_type"] = kind.into();
        data["traceback"] = recorded("node_traceback").clone();
        data["current_inputs"] = current_inputs(&self.item.prompt[id]["inputs"]);
        data["current_outputs"] = json!(all);
        self.message("execution_error", data, false);
    }

    /// A frame to the prompt's client, dropped when it has none.
    fn tell(&self, kind: &str, data: Value) {
        if self.client.is_some() {
            self.core.hub.send(self.client, kind, data);
        }
    }

    /// A frame that history keeps, with its time.
    fn message(&mut self, kind: &str, mut data: Value, broadcast: bool) {
        data["timestamp"] = super::now_ms().into();
        self.messages.push(json!([kind, data]));
        if self.client.is_some() || broadcast {
            self.core.hub.send(self.client, kind, data);
        }
    }

    /// `progress_state`, which goes to everybody when the prompt has no client.
    pub(super) fn send_progress(&self) {
        let data = json!({"prompt_id": self.item.id, "nodes": self.progress.shown(&self.item.id)});
        self.core.hub.send(self.client, "progress_state", data);
    }

    fn finished(self, item: &Arc<Item>, completed: bool) -> Finished {
        let status = json!({
            "status_str": if completed { "success" } else { "error" },
            "completed": completed,
            "messages": self.messages,
        });
        Finished { item: item.clone(), outputs: self.outputs, status, meta: self.meta }
    }
}

fn current_inputs(inputs: &Value) -> Value {
    let inputs = inputs.as_object().into_iter().flatten();
    let wrap = |value: &Value| if value.is_array() { json!(["<IMAGE>"]) } else { json!([value]) };
    inputs.map(|(name, value)| (name.clone(), wrap(value))).collect::<Map<_, _>>().into()
}
