//! What a person types: curl.

use tokio::process::Command;
use tokio::time::timeout;

use crate::support::process::taken;
use crate::support::{PATIENCE, Reply};

/// Runs curl, or sends what it would where there is none.
pub(super) async fn curl(words: &[&str], url: &str) -> Reply {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "-w", "\n%{http_code}"]).args(words).arg(url);
    let Ok(ended) = timeout(PATIENCE, command.output()).await.expect("curl ends") else {
        return as_curl(words, url).await;
    };
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let text = String::from_utf8(ended.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    Reply::new(status.parse().unwrap(), Vec::new(), body.into())
}

async fn as_curl(words: &[&str], url: &str) -> Reply {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let value = |flag: &str| {
        let at = words.iter().position(|word| *word == flag);
        at.map(|at| words[at + 1])
    };
    let method = value("-X").unwrap_or("GET").parse().unwrap();
    let mut request = client.request(method, url);
    if let Some(body) = value("-d") {
        let form = "Content-Type: application/x-www-form-urlencoded";
        let (name, content) = value("-H").unwrap_or(form).split_once(": ").unwrap();
        request = request.header(name, content).body(body.to_owned());
    }
    taken(request).await.unwrap()
}
