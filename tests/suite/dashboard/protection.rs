//! Logins, forged requests, rebound names.

use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use super::{gateway, sim};

fn client() -> Client {
    Client::builder().redirect(Policy::none()).build().unwrap()
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.unwrap()
}

fn cookie(reply: &Response) -> String {
    let line = reply.headers()["set-cookie"].to_str().unwrap();
    line.split(';').next().unwrap().to_owned()
}

fn csrf(page: &str) -> String {
    let (_, rest) = page.split_once(r#"name="csrf" value=""#).expect("a form");
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_logs_in_changes_something_and_logs_out() {
    let one = sim(1).await;
    let gateway = gateway(&[&one], Some("the-right-token")).await;
    let (client, admin) = (client(), gateway.admin.clone());
    let at = |path: &str| format!("{admin}{path}");

    let away = send(client.get(at("/")).header("accept", "text/html,*/*")).await;
    assert_eq!(
        (away.status(), &away.headers()["location"]),
        (StatusCode::SEE_OTHER, &"/login".parse().unwrap())
    );
    assert_eq!(send(client.get(at("/"))).await.status(), StatusCode::UNAUTHORIZED);
    let form = send(client.get(at("/login"))).await;
    assert!(form.headers()["content-security-policy"].to_str().unwrap().contains("'none'"));

    let log_in = |token: &str| client.post(at("/login")).form(&[("token", token)]);
    let wrong = send(log_in("the-wrong-token")).await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(!wrong.headers().contains_key("set-cookie"));
    assert!(wrong.text().await.unwrap().contains("role=\"alert\""));
    let foreign = log_in("the-right-token").header("origin", "http://evil.example");
    assert_eq!(send(foreign).await.status(), StatusCode::FORBIDDEN);
    let right = send(log_in("the-right-token")).await;
    assert_eq!(right.status(), StatusCode::SEE_OTHER);
    let line = right.headers()["set-cookie"].to_str().unwrap();
    assert!(line.contains("HttpOnly") && line.contains("SameSite=Strict"), "{line}");

    let login = cookie(&right);
    let page = send(client.get(at("/")).header("cookie", &login)).await;
    assert_eq!(page.status(), StatusCode::OK);
    let csrf = csrf(&page.text().await.unwrap());

    let change = |fields: &[(&str, &str)]| {
        client.post(at("/dashboard/backend")).header("cookie", &login).form(fields)
    };
    let drain = [("name", "gpu-1"), ("do", "drain")];
    assert_eq!(send(change(&drain)).await.status(), StatusCode::FORBIDDEN);
    let forged = [drain[0], drain[1], ("csrf", "0123")];
    assert_eq!(send(change(&forged)).await.status(), StatusCode::FORBIDDEN);
    let own = [drain[0], drain[1], ("csrf", csrf.as_str())];
    assert_eq!(send(change(&own)).await.status(), StatusCode::SEE_OTHER);

    let api = || client.post(at("/lb/backends/gpu-1/enable")).header("cookie", &login);
    assert_eq!(send(api()).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(send(api().header("x-comfygate-csrf", &csrf)).await.status(), StatusCode::OK);
    let bearer = client.post(at("/lb/backends/gpu-1/drain")).bearer_auth("the-right-token");
    assert_eq!(send(bearer).await.status(), StatusCode::OK);
    let data = format!("{}/lb/stats", gateway.data);
    assert_eq!(
        send(client.get(data).header("cookie", &login)).await.status(),
        StatusCode::UNAUTHORIZED
    );

    let out =
        client.post(at("/dashboard/logout")).header("cookie", &login).form(&[("csrf", &csrf)]);
    assert_eq!(send(out).await.status(), StatusCode::SEE_OTHER);
    let after = send(client.get(at("/lb/stats")).header("cookie", &login)).await;
    assert_eq!(after.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_no_other_page_can_act_through_a_browser() {
    let one = sim(1).await;
    let gateway = gateway(&[&one], None).await;
    let (client, admin) = (client(), gateway.admin.clone());
    let at = |path: &str| format!("{admin}{path}");
    let drain = || client.post(at("/lb/backends/gpu-1/drain"));
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "cross-site"),
        ("host", "evil.example"),
    ] {
        let refused = send(drain().header(name, value)).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{name}: {value}");
    }
    let rebound = client.get(at("/lb/backends")).header("host", "evil.example");
    assert_eq!(send(rebound).await.status(), StatusCode::FORBIDDEN);
    // Monitors ask by any name.
    let alive = client.get(at("/healthz")).header("host", "comfygate");
    assert_eq!(send(alive).await.status(), StatusCode::OK);
    assert_eq!(send(drain()).await.status(), StatusCode::OK);
    assert_eq!(send(drain().header("origin", &admin)).await.status(), StatusCode::OK);

    // The forms want the token of the page that showed them.
    let enable = [("name", "gpu-1"), ("do", "enable")];
    let form = || client.post(at("/dashboard/backend"));
    assert_eq!(send(form().form(&enable)).await.status(), StatusCode::FORBIDDEN);
    let page = send(client.get(at("/"))).await;
    let kept = cookie(&page);
    let csrf = csrf(&page.text().await.unwrap());
    let own = [enable[0], enable[1], ("csrf", csrf.as_str())];
    assert_eq!(send(form().form(&own)).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        send(form().header("cookie", kept).form(&own)).await.status(),
        StatusCode::SEE_OTHER
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_page_loads_is_there_and_nothing_is_inline() {
    let one = sim(1).await;
    let gateway = gateway(&[&one], None).await;
    let client = client();
    let zh = client.get(format!("{}/", gateway.admin)).header("accept-language", "zh-CN,en;q=0.5");
    let page = send(zh).await.text().await.unwrap();
    assert!(page.contains(r#"<html lang="zh-Hans">"#) && page.contains("集群概览"));
    assert!(!page.contains(" style=") && !page.contains("<style") && !page.contains("onclick"));
    assert!(
        !page.contains("http://www.") || page.matches("http://www.w3.org/2000/svg").count() > 0
    );
    let assets: Vec<&str> =
        page.split(['"', '\'']).filter(|part| part.starts_with("/assets/")).collect();
    assert_eq!(assets.len(), 3, "{assets:?}");
    for asset in assets {
        let reply = send(client.get(format!("{}{asset}", gateway.admin))).await;
        assert_eq!(reply.status(), StatusCode::OK, "{asset}");
        assert!(reply.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    }
    let none = send(client.get(format!("{}/assets/../../etc/passwd", gateway.admin))).await;
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
}
