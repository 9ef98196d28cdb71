//! What a scrape shows: counters as they stand, gauges taken from the fleet at that moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::{CacheResult, Metrics, TaskEnd, Traffic};
use crate::backend::Backend;
use crate::clock::Moment;
use crate::gateway::Gateway;
use crate::rejection::Kind;

/// The states a backend may be in.
pub const STATES: [&str; 7] = ["unknown", "up", "down", "suspect", "ejected", "drain", "disabled"];

/// The whole page in Prometheus' text format.
pub fn page(gateway: &Gateway) -> prometheus::Result<String> {
    let fleet = &gateway.fleet.view().backends;
    // Instances of the service registry answer requests too, and have no queue.
    let services = gateway.registry.services().into_iter().map(|service| service.backend);
    let all: Vec<Arc<Backend>> = fleet.iter().cloned().chain(services).collect();
    let mut page = Page::default();
    traffic(&mut page, &gateway.metrics.front, &all);
    standing(&mut page, gateway, &all);
    work(&mut page, gateway, fleet);
    totals(&mut page, gateway, fleet);
    events(&mut page, &gateway.metrics);
    tasks(&mut page, &gateway.metrics);
    TextEncoder::new().encode_to_string(&page.families)
}

fn traffic(page: &mut Page, front: &Traffic, backends: &[Arc<Backend>]) {
    let all = || {
        let theirs = backends.iter().map(|b| (b.name(), &b.live.traffic));
        std::iter::once(("", front)).chain(theirs)
    };
    let answers = all().flat_map(|(backend, traffic)| {
        traffic.counts().map(move |(method, code, count)| {
            let code = code.to_string();
            (labels([("backend", backend), ("method", method), ("code", &code)]), count)
        })
    });
    let help = "Requests that the data port answered, WebSocket upgrades and refusals included.";
    page.counters("requests_total", help, answers);
    let durations = all()
        .map(|(backend, traffic)| (labels([("backend", backend)]), traffic.durations.snapshot()));
    let help = "Time from a request's head to the end of its answer.";
    page.histograms("request_duration_seconds", help, durations);
}

fn standing(page: &mut Page, gateway: &Gateway, backends: &[Arc<Backend>]) {
    let up = backends
        .iter()
        .map(|backend| (of(backend), f64::from(u8::from(backend.live.standing().is_healthy()))));
    page.gauges("backend_up", "Whether a backend answers its probes and is in service.", up);
    let states = backends.iter().flat_map(|backend| {
        let now = backend.live.standing().label();
        STATES.map(|state| {
            let labels = labels([("backend", backend.name()), ("state", state)]);
            (labels, f64::from(u8::from(state == now)))
        })
    });
    page.gauges("backend_state", "1 for the state that a backend is in, 0 for the others.", states);
    let ejections = backends.iter().map(|backend| (of(backend), backend.live.outlier.ejections()));
    let help = "Times that a backend was ejected for failing requests.";
    page.counters("backend_ejections_total", help, ejections);
    let held =
        backends.iter().map(|backend| (of(backend), f64::from(backend.live.connections.count())));
    let help = "Requests and WebSockets that a backend holds.";
    page.gauges("backend_connections", help, held);
    let ratio = backends.iter().map(|backend| {
        let live = &backend.live;
        let (calls, failures) = (live.calls.load(Relaxed), live.failures.load(Relaxed));
        (of(backend), gateway.tasks.success_rate(backend.id, calls, failures))
    });
    let help = "Share of a backend's requests and prompts that did not fail on it.";
    page.gauges("backend_success_ratio", help, ratio);
}

fn work(page: &mut Page, gateway: &Gateway, backends: &[Arc<Backend>]) {
    let queues = backends.iter().flat_map(|backend| {
        let depth = &backend.live.depth;
        let running = depth.reading().running;
        let pending = depth.prompts().saturating_sub(running);
        [("running", running), ("pending", pending)].map(|(kind, prompts)| {
            (labels([("backend", backend.name()), ("kind", kind)]), f64::from(prompts))
        })
    });
    page.gauges("backend_queue", "Prompts that a backend holds.", queues);
    let now = Moment::now();
    let ages = backends.iter().filter_map(|backend| {
        let read = backend.live.depth.reading().at?;
        Some((of(backend), now.since(read).as_secs_f64()))
    });
    page.gauges("queue_age_seconds", "Time since a backend's queue was read.", ages);
    let sessions = backends
        .iter()
        .map(|backend| (of(backend), gateway.affinity.sessions(backend.id.0) as f64));
    page.gauges("backend_sessions", "Clients that belong to a backend.", sessions);
    let sockets =
        backends.iter().map(|backend| (of(backend), f64::from(backend.live.sockets.load(Relaxed))));
    page.gauges("websockets", "Client WebSockets open through a backend.", sockets);
}

fn totals(page: &mut Page, gateway: &Gateway, backends: &[Arc<Backend>]) {
    let sessions = gateway.affinity.len() as f64;
    page.gauges("sessions", "Clients that belong to a backend.", [(Vec::new(), sessions)]);
    let queued = queued(gateway, backends) as f64;
    page.gauges("tasks_queued", "Prompts that wait, on all backends.", [(Vec::new(), queued)]);
    let success = !gateway.metrics.reload_failed.load(Relaxed);
    let help = "Whether the last reload of the configuration was taken; 1 before the first.";
    let success = f64::from(u8::from(success));
    page.gauges("config_last_reload_success", help, [(Vec::new(), success)]);
}

/// Prompts that wait: in the gateway's own line (pool mode) and on these backends.
pub fn queued(gateway: &Gateway, backends: &[Arc<Backend>]) -> u64 {
    let pending = |backend: &Arc<Backend>| {
        let depth = &backend.live.depth;
        u64::from(depth.prompts().saturating_sub(depth.reading().running))
    };
    let own = gateway.pool().map_or(0, |pool| pool.waiting() as u64);
    own + backends.iter().map(pending).sum::<u64>()
}

fn events(page: &mut Page, metrics: &Metrics) {
    let alone = |count: &AtomicU64| [(Vec::new(), count.load(Relaxed))];
    let help = "Clients that were moved because their backend could not keep them.";
    page.counters("failovers_total", help, alone(&metrics.failovers));
    let help = "Requests sent to another backend after one failed them.";
    page.counters("retries_total", help, alone(&metrics.retries));
    let reasons = Kind::ALL.iter().zip(&metrics.rejections);
    let rejections =
        reasons.map(|(kind, count)| (labels([("reason", kind.name())]), count.load(Relaxed)));
    page.counters("rejections_total", "Errors that the gateway answered itself.", rejections);
    let results = CacheResult::ALL.iter().zip(&metrics.cache);
    let asked =
        results.map(|(result, count)| (labels([("result", result.name())]), count.load(Relaxed)));
    page.counters("cache_requests_total", "Requests that the cache was asked for.", asked);
}

fn tasks(page: &mut Page, metrics: &Metrics) {
    let ends = TaskEnd::ALL.iter().zip(&metrics.tasks);
    let ended = ends.map(|(end, count)| (labels([("state", end.name())]), count.load(Relaxed)));
    page.counters("tasks_total", "Tasks that ended, by how.", ended);
    let wait = [(Vec::new(), metrics.task_wait.snapshot())];
    page.histograms("task_wait_seconds", "Time that tasks waited for their turn.", wait);
    let run = [(Vec::new(), metrics.task_run.snapshot())];
    page.histograms("task_run_seconds", "Time that tasks ran.", run);
    let error = [(Vec::new(), metrics.eta_error.snapshot())];
    let help = "By how much a task began sooner or later than was reckoned when it came.";
    page.histograms("eta_error_seconds", help, error);
}

type Labels = Vec<LabelPair>;

fn of(backend: &Backend) -> Labels {
    labels([("backend", backend.name())])
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    let pair = |(name, value): (&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    pairs.into_iter().map(pair).collect()
}

/// Families in the order they are shown.
#[derive(Default)]
struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    fn counters(&mut self, name: &str, help: &str, of: impl IntoIterator<Item = (Labels, u64)>) {
        self.add(name, help, MetricType::COUNTER, of, |metric, count| {
            let mut counter = Counter::default();
            counter.set_value(count as f64);
            metric.set_counter(counter);
        });
    }

    fn gauges(&mut self, name: &str, help: &str, of: impl IntoIterator<Item = (Labels, f64)>) {
        self.add(name, help, MetricType::GAUGE, of, |metric, value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        of: impl IntoIterator<Item = (Labels, Histogram)>,
    ) {
        self.add(name, help, MetricType::HISTOGRAM, of, Metric::set_histogram);
    }

    /// A family without a sample is left out: the format has no place for it.
    fn add<T>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels, T)>,
        set: impl Fn(&mut Metric, T),
    ) {
        let sample = |(labels, value)| {
            let mut metric = Metric::from_label(labels);
            set(&mut metric, value);
            metric
        };
        let metrics: Vec<_> = samples.into_iter().map(sample).collect();
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(format!("comfygate_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }
}
