//! From sources to a checked configuration: the order of the steps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_yaml::Value;

use super::backends::{Listed, backends};
use super::check;
use super::checked::Config;
use super::keys::{BACKENDS_FILE, FILE, check_keys};
use super::layers;
use super::problem::{Problem, Problems};
use super::raw::{Document, Node, Reading};
use super::yaml::{self, Refusal};

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file; without one, environment and flags must do.
    pub file: Option<PathBuf>,
    /// The environment, of which only the variables of comfygate and those that secrets name count.
    pub env: BTreeMap<String, String>,
    /// The command line.
    pub flags: Flags,
}

/// Flags that beat file and environment.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Address to listen on
    #[arg(short = 'H', long)]
    pub host: Option<String>,
    /// Port to listen on
    #[arg(short, long)]
    pub port: Option<u16>,
    /// The backends, instead of the file's: URL,URL
    #[arg(long, value_name = "URL,URL")]
    pub backends: Option<String>,
}

/// A configuration with what its user should hear about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is allowed but hardly meant, one line each.
    pub warnings: Vec<String>,
    /// Backends that came from `config.backends_file`.
    pub from_backends_file: usize,
}

/// The process's environment; what is not UTF-8 is replaced, so that it is complained about.
pub fn process_env() -> BTreeMap<String, String> {
    let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Loads a configuration, or tells everything that is wrong with it.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let (text, tree) = match &sources.file {
        None => (String::new(), Value::Null),
        Some(path) => read_tree(path, "--config", |tree| match tree {
            Value::Mapping(_) => None,
            Value::Null => Some("is empty; start from conf/minimal.yaml"),
            _ => Some("holds no keys; begin with one, such as backends:"),
        })?,
    };
    let directory = sources.file.as_deref().and_then(Path::parent);
    load_tree(text, tree, directory.unwrap_or(Path::new("")), sources)
}

/// Loads a configuration from a text alone, without environment and flags.
pub fn parse(text: &str) -> Result<Config, Problems> {
    let tree = yaml::parse(text).map_err(|refusal| refused("config", "text", refusal))?;
    let loaded = load_tree(text.to_owned(), tree, Path::new(""), &Sources::default())?;
    Ok(loaded.config)
}

/// Reads one backend from the words of an API call: an item of `backends`, with a name.
pub fn backend_of(words: &serde_json::Value) -> Result<super::Backend, Problems> {
    let problem = |key: &str, cure: &str| {
        let (key, value, cure) = (key.to_owned(), String::new(), cure.to_owned());
        Problem { key, value, source: None, line: None, cure }
    };
    if !words.is_object() {
        return Err(problem("body", "send an object, such as {\"name\", \"url\"}").into());
    }
    if words.get("name").is_none() {
        return Err(problem("name", "give one: 1 to 64 of A-Z a-z 0-9 . _ -").into());
    }
    // What a secret refers to is the machine's own: a caller could have the gateway send any file
    // to a server of theirs.
    let headers = words.get("headers").and_then(serde_json::Value::as_object);
    if headers.is_some_and(|headers| headers.values().any(|value| !value.is_string())) {
        let cure = "give the values as texts; only the configuration file may refer to secrets";
        return Err(problem("headers", cure).into());
    }
    if words.get("tls").and_then(|tls| tls.get("ca")).is_some() {
        let cure = "only the configuration file may name files; use backend_tls.ca there";
        return Err(problem("tls.ca", cure).into());
    }
    // JSON is YAML, in which this key would merge another map in, past the check above.
    if words.get("<<").is_some() {
        return Err(problem("<<", "no such key; remove it").into());
    }
    let config = parse(&serde_json::json!({ "backends": [words] }).to_string())
        .map_err(|problems| problems.below("backends[0]."))?;
    config.backends.into_iter().next().ok_or_else(|| problem("body", "send a backend").into())
}

/// Reads and parses a file in which `refuse` finds nothing wrong.
fn read_tree(
    path: &Path,
    key: &str,
    refuse: impl Fn(&Value) -> Option<&'static str>,
) -> Result<(String, Value), Problem> {
    let read = || {
        let text = yaml::read(path)?;
        let tree = yaml::parse(&text)?;
        match refuse(&tree) {
            Some(cure) => Err(Refusal { line: None, cure: cure.to_owned() }),
            None => Ok((text, tree)),
        }
    };
    read().map_err(|refusal| refused(key, &path.display().to_string(), refusal))
}

fn refused(key: &str, value: &str, Refusal { line, cure }: Refusal) -> Problem {
    Problem { key: key.to_owned(), value: value.to_owned(), source: None, line, cure }
}

fn load_tree(
    text: String,
    tree: Value,
    directory: &Path,
    sources: &Sources,
) -> Result<Loaded, Problems> {
    let reading = Reading {
        env: &sources.env,
        directory: directory.to_owned(),
        problems: RefCell::default(),
    };
    let mut file = Document { tree, text, prefix: "", source: None, laid_on: Vec::new() };
    layers::lay_on(&mut file, sources, &reading);
    let root = Node::root(&reading, &file);
    check_keys(&root, &FILE);

    // Backends that the environment or a flag names replace all that the file names.
    let named = layers::named_backends(sources);
    let listed = if named.is_some() { None } else { backends_file(&root) };
    let (path, listed) = listed.map_or((None, None), |(path, list)| (Some(path), Some(list)));
    let backups = layers::backups(sources);
    let main = match &named {
        Some(document) => Node::root(&reading, document),
        None => root.get("backends"),
    };
    let listed = listed.as_ref().map(|document| Node::root(&reading, document));
    let backups = backups.as_ref().map(|document| Node::root(&reading, document));
    if let Some(list) = &listed {
        check_keys(list, &BACKENDS_FILE);
    }
    let lists = [
        Listed { nodes: main.items(), word: "comfy", backups: false },
        Listed { nodes: items(listed.as_ref()), word: "comfy", backups: false },
        Listed { nodes: items(backups.as_ref()), word: "backup", backups: true },
    ];
    let from_backends_file = items(listed.as_ref()).len();
    require_backends(&root, &lists, &reading);
    let config = check::config(&root, backends(&lists), path);
    let warnings = check::warnings(&root, &config);

    let problems = reading.problems.into_inner();
    if problems.is_empty() {
        Ok(Loaded { config, warnings, from_backends_file })
    } else {
        Err(problems.by_line())
    }
}

fn items<'a>(list: Option<&Node<'a>>) -> Vec<Node<'a>> {
    list.map(Node::items).unwrap_or_default()
}

/// The list that `backends_file` names.
fn backends_file(root: &Node<'_>) -> Option<(PathBuf, Document)> {
    let node = root.get("backends_file");
    let path = node.text("use the path of a list of URLs", Some)?;
    let path = node.reading().resolve(&path);
    let read = read_tree(&path, "backends_file", |tree| match tree {
        Value::Sequence(_) => None,
        _ => Some("holds no list; write [\"http://HOST:8188\"]"),
    });
    match read {
        Ok((text, tree)) => {
            let source = Some(path.display().to_string());
            let prefix = "backends_file";
            Some((path, Document { tree, text, prefix, source, laid_on: Vec::new() }))
        }
        Err(problem) => {
            node.problem(problem.cure);
            None
        }
    }
}

/// Notes that there are no backends, unless that follows from another problem.
fn require_backends(root: &Node<'_>, lists: &[Listed<'_>], reading: &Reading<'_>) {
    let broken = reading.problems.borrow().iter().any(|p| p.key.starts_with("backends"));
    if !broken && lists.iter().all(|list| list.nodes.is_empty()) {
        root.get("backends").problem(
            "give at least one under backends, in COMFYGATE_BACKENDS or with --backends, such as \
             http://127.0.0.1:8188"
                .to_owned(),
        );
    }
}
