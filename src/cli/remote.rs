//! The commands that talk to a running gateway's admin API: `add`, `remove`, `enable`, `disable`,
//! `drain`, `healthcheck`.

use std::time::{Duration, Instant};

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::Exit;

/// One request takes at most this long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks with `--wait`.
const PAUSE: Duration = Duration::from_millis(500);

/// Where the gateway is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// Address of the admin plane
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8101")]
    pub(super) admin: String,
    /// Admin token
    #[arg(long, value_name = "TOKEN", env = "COMFYGATE_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Options of `add`.
#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    /// Name of the backend
    name: String,
    /// Where it listens: http or https, host, port
    url: String,
    /// Share of the load, 1 to 100
    #[arg(long)]
    weight: Option<u32>,
    /// Prompts it should hold at most
    #[arg(long)]
    max_queue: Option<u32>,
    /// Use it only when no other backend is healthy
    #[arg(long)]
    backup: bool,
    /// A label, such as zone=eu; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// A task type that it serves; may be repeated
    #[arg(long = "task-type", value_name = "TYPE")]
    task_types: Vec<String>,
    /// Wait until it is healthy
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    target: Target,
}

/// Options of the commands that take names.
#[derive(Debug, clap::Args)]
pub(super) struct NamesArgs {
    /// Names of backends
    #[arg(required = true)]
    names: Vec<String>,
    /// Wait until it is done: drained ones empty, enabled ones healthy, removed ones gone
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    target: Target,
}

/// Options of `remove`.
#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    /// Let the clients of the backend finish first
    #[arg(long)]
    drain: bool,
    #[command(flatten)]
    names: NamesArgs,
}

/// What a name's command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Enable,
    Disable,
    Drain,
}

/// Why a command ended badly: what to print and how to exit.
pub(super) struct Failure(Exit, String);

impl Failure {
    pub(super) fn print(&self) -> Exit {
        eprintln!("{}", self.1);
        self.0
    }
}

/// A client of one gateway's admin API.
pub(super) struct Remote {
    client: Client,
    target: Target,
}

impl Remote {
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        let client = Client::builder().no_proxy().timeout(TIMEOUT).build();
        let client = client.map_err(|error| Failure(Exit::Failed, error.to_string()))?;
        Ok(Self { client, target: target.clone() })
    }

    /// Asks, and takes the JSON of a success.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, Failure> {
        let answer = self.send(method, path, body).await?;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(body);
        }
        let error = &body["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        let message = match (text("message"), text("details")) {
            (message, _) if message.is_empty() => format!("the gateway answered {status}"),
            (message, details) if details.is_empty() => message,
            (message, details) => format!("{message}: {details}"),
        };
        let wrong_usage = matches!(
            status,
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND
        );
        Err(Failure(if wrong_usage { Exit::Usage } else { Exit::Failed }, message))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Response, Failure> {
        let url = format!("{}{path}", self.target.admin.trim_end_matches('/'));
        let mut request = self.client.request(method, &url);
        if let Some(token) = &self.target.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.map_err(|error| {
            let why = if error.is_builder() { "is no URL" } else { "cannot be reached" };
            let cure = "is the gateway running, and --admin its address?";
            Failure(Exit::Failed, format!("{url} {why}: {cure}"))
        })
    }

    /// Looks at a backend until `done` holds of it (`None`: it is gone).
    async fn wait(&self, name: &str, done: impl Fn(Option<&Value>) -> bool) -> Result<(), Failure> {
        let mut told = Instant::now();
        loop {
            let list = self.ask(Method::GET, "/lb/backends", None).await?;
            let backend = list["backends"]
                .as_array()
                .and_then(|list| list.iter().find(|backend| backend["name"] == name));
            if done(backend) {
                return Ok(());
            }
            if told.elapsed() > Duration::from_secs(10) {
                eprintln!("{name}: still waiting");
                told = Instant::now();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

pub(super) async fn add(args: &AddArgs) -> Result<(), Failure> {
    let mut labels = Map::new();
    for label in &args.labels {
        let Some((key, value)) = label.split_once('=') else {
            let message = format!("--label {label}: give it as KEY=VALUE");
            return Err(Failure(Exit::Usage, message));
        };
        labels.insert(key.to_owned(), value.into());
    }
    let mut words = json!({"name": args.name, "url": args.url, "backup": args.backup,
        "labels": labels, "task_types": args.task_types});
    for (key, value) in [("weight", args.weight), ("max_queue", args.max_queue)] {
        if let Some(value) = value {
            words[key] = value.into();
        }
    }
    let remote = Remote::new(&args.target)?;
    remote.ask(Method::POST, "/lb/backends", Some(words)).await?;
    if args.wait {
        remote.wait(&args.name, is_healthy).await?;
    }
    println!("{}: added", args.name);
    Ok(())
}

pub(super) async fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let remote = Remote::new(&args.names.target)?;
    for name in &args.names.names {
        let query = if args.drain { "?drain=true" } else { "" };
        remote.ask(Method::DELETE, &format!("{}{query}", path_of(name)), None).await?;
    }
    for name in &args.names.names {
        if args.names.wait {
            remote.wait(name, |backend| backend.is_none()).await?;
        }
        let leaves = args.drain && !args.names.wait;
        println!("{name}: {}", if leaves { "drains and is then removed" } else { "removed" });
    }
    Ok(())
}

pub(super) async fn want(verb: Verb, args: &NamesArgs) -> Result<(), Failure> {
    let (word, told) = match verb {
        Verb::Enable => ("enable", "enabled"),
        Verb::Disable => ("disable", "disabled"),
        Verb::Drain => ("drain", "drains"),
    };
    let remote = Remote::new(&args.target)?;
    for name in &args.names {
        remote.ask(Method::POST, &format!("{}/{word}", path_of(name)), None).await?;
    }
    for name in &args.names {
        match verb {
            Verb::Enable if args.wait => remote.wait(name, is_healthy).await?,
            Verb::Drain if args.wait => remote.wait(name, is_empty).await?,
            _ => {}
        }
        println!("{name}: {}", if args.wait && verb == Verb::Drain { "empty" } else { told });
    }
    Ok(())
}

pub(super) async fn healthcheck(target: &Target) -> Result<(), Failure> {
    Remote::new(target)?
        .ask(Method::GET, "/readyz", None)
        .await
        .map(drop)
        .map_err(|Failure(_, message)| Failure(Exit::Failed, message))
}

fn is_healthy(backend: Option<&Value>) -> bool {
    backend.is_none_or(|backend| backend["healthy"] == true)
}

fn is_empty(backend: Option<&Value>) -> bool {
    backend.is_none_or(|b| b["sessions"] == 0 && b["websockets"] == 0 && b["queue"]["total"] == 0)
}

/// A backend's path; its name may hold anything on the command line.
fn path_of(name: &str) -> String {
    let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    format!("/lb/backends/{name}")
}
