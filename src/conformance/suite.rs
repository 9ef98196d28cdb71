//! The order of the checks: the scenarios as recorded, then the HTTP exchanges, which speak of the
//! scenarios' prompts, then the API requests of a page load.

use std::collections::BTreeMap;

use anyhow::Context;
use reqwest::Method;
use serde_json::Value;

use super::compare::{Difference, Findings, compare};
use super::contract::compare_exchange;
use super::exchange::{self, Places};
use super::normalise::Names;
use super::recording::{
    Exchange, PageRequest, Scenario, Transcript, exchanges, page_requests, scenarios,
};
use super::report::{CheckResult, Report};
use super::target::Target;
use super::{Options, drive, innermost};

/// What a server without the test node is told.
const NO_NODE: &str = "the server has no node PacedImage";
/// Scenarios that HTTP exchanges speak of.
const SPOKEN_OF: [&str; 3] = ["run_ok", "front_and_number", "reconnect_while_running"];

/// A run of the checks against one server.
pub(super) struct Suite {
    target: Target,
    filter: Option<String>,
    has_node: bool,
    scenarios: Vec<Scenario>,
    runs: BTreeMap<String, Transcript>,
    report: Report,
}

impl Suite {
    /// Asks the server what it can do.
    pub(super) async fn begin(url: &str, options: &Options) -> anyhow::Result<Self> {
        let mut target = Target::new(url, options.timeout)?;
        let info =
            target.get_json("/object_info/PacedImage").await.context("no ComfyUI answers")?;
        target.find_farm().await?;
        Ok(Self {
            target,
            filter: options.filter.clone(),
            has_node: info.get("PacedImage").is_some(),
            scenarios: scenarios()?,
            runs: BTreeMap::new(),
            report: Report::default(),
        })
    }

    /// Runs everything that the filter lets through.
    pub(super) async fn run(
        &mut self,
        tell: &mut impl FnMut(&CheckResult),
    ) -> anyhow::Result<Report> {
        for recorded in self.scenarios.clone() {
            let name = format!("ws {}", recorded.scenario);
            if self.is_wanted(&name) {
                let result = self.scenario(&name, &recorded).await;
                self.note(result, tell);
            }
        }
        self.exchanges(tell).await?;
        for request in api_requests()? {
            let name = format!("page {} {}", request.method, request.path);
            if self.is_wanted(&name) {
                let result = self.page_request(&name, &request).await;
                self.note(result, tell);
            }
        }
        Ok(std::mem::take(&mut self.report))
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter))
    }

    fn note(&mut self, result: CheckResult, tell: &mut impl FnMut(&CheckResult)) {
        tell(&result);
        self.report.results.push(result);
    }

    async fn scenario(&mut self, name: &str, recorded: &Scenario) -> CheckResult {
        if !self.has_node {
            return CheckResult::skipped(name, NO_NODE);
        }
        match drive::run(&self.target, recorded).await {
            Ok(observed) => {
                let differences = compare(recorded, &observed);
                self.runs.insert(recorded.scenario.clone(), observed);
                CheckResult::new(name, differences)
            }
            Err(error) => CheckResult::new(name, broken(&recorded.scenario, &error)),
        }
    }

    async fn exchanges(&mut self, tell: &mut impl FnMut(&CheckResult)) -> anyhow::Result<()> {
        let mut all = exchanges()?;
        all.retain(|exchange| self.is_wanted(&format!("http {}", exchange.name)));
        self.prepare(&all).await;
        let spoken_of = |scenario: &&Scenario| SPOKEN_OF.contains(&scenario.scenario.as_str());
        let recorded: Vec<Scenario> = self.scenarios.iter().filter(spoken_of).cloned().collect();
        let pairs =
            || recorded.iter().filter_map(|want| Some((want, self.runs.get(&want.scenario)?)));
        let places = Places::of(pairs());
        let observed = Names::of(pairs().map(|p| p.1)).of_a_farm(self.target.farm() > 0);
        let names = (Names::of(pairs().map(|p| p.0)).lenient(), observed.lenient());
        for exchange in &all {
            let result = self.exchange(exchange, &places, (&names.0, &names.1)).await;
            self.note(result, tell);
        }
        Ok(())
    }

    /// Runs, unreported, the scenarios that the exchanges need and the filter left out.
    async fn prepare(&mut self, exchanges: &[Exchange]) {
        let needed =
            |name: &str| exchanges.iter().any(|e| exchange::needs(&e.name).contains(&name));
        for recorded in self.scenarios.clone() {
            let name = recorded.scenario.as_str();
            if self.has_node && needed(name) && !self.runs.contains_key(name) {
                // A failure shows in the exchange that misses it.
                self.scenario(name, &recorded).await;
            }
        }
    }

    async fn exchange(
        &self,
        exchange: &Exchange,
        places: &Places,
        names: (&Names, &Names),
    ) -> CheckResult {
        let name = format!("http {}", exchange.name);
        if !self.has_node && exchange::needs_node(exchange) {
            return CheckResult::skipped(&name, NO_NODE);
        }
        if let Err(error) = exchange::check_needs(&exchange.name, &self.runs) {
            return CheckResult::new(&name, broken(&exchange.name, &error));
        }
        match exchange::replay(&self.target, exchange, places).await {
            Ok(response) => CheckResult::new(&name, compare_exchange(exchange, &response, names)),
            Err(error) => CheckResult::new(&name, broken(&exchange.name, &error)),
        }
    }

    /// Of a page's API requests the status and content type count: what they bring is state.
    async fn page_request(&self, name: &str, request: &PageRequest) -> CheckResult {
        let asked = self.target.request(Method::GET, &request.path);
        let answer = match self.target.send(asked).await {
            Ok(answer) => exchange::response(&self.target, &answer),
            Err(error) => return CheckResult::new(name, broken(name, &error)),
        };
        let mut findings = Findings::new(name);
        findings.values("status", &request.status.into(), &answer.status.into());
        let kind = answer.headers.get("content-type").cloned();
        let both = (Value::from(request.content_type.clone()), Value::from(kind));
        findings.values("header.content-type", &both.0, &both.1);
        CheckResult::new(name, findings.into_list())
    }
}

/// The API requests of the page load that don't depend on what a user has stored.
fn api_requests() -> anyhow::Result<Vec<PageRequest>> {
    let mut requests = page_requests()?;
    requests.retain(|r| {
        r.method == "GET" && r.path.starts_with("/api/") && !r.path.starts_with("/api/userdata")
    });
    requests.dedup_by(|a, b| a.path == b.path);
    Ok(requests)
}

/// A check that broke off.
fn broken(scenario: &str, error: &anyhow::Error) -> Vec<Difference> {
    let mut findings = Findings::new(scenario);
    findings.add("the run", "to reach its end", innermost(error));
    findings.into_list()
}
