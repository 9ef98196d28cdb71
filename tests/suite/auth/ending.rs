//! What a reload takes away is gone at once, from open WebSockets too.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::login::log_in;
use super::{ask, handshake, made, user};
use crate::support::socket::{close_code, open};
use crate::support::{Gateway, PATIENCE, Setup, farm};

/// What a gateway goes by, changed and read again.
async fn reload(gateway: &Gateway, setup: &Setup, auth: Value) {
    setup.clone().with(json!({"auth": auth})).write();
    gateway.signal("HUP").await;
    gateway.until_logged("configuration reloaded").await;
}

#[tokio::test]
async fn a_key_that_is_taken_out_is_out_at_once_in_both_modes() {
    for mode in ["sticky", "pool"] {
        let farm = farm(1).await;
        let (kept, lost) = (made("kept", &json!({})), made("lost", &json!({})));
        let setup = Setup::of(&farm).with(json!({"mode": mode}));
        let both = json!({"keys": [kept.entry, lost.entry]});
        let gateway = setup.clone().with(json!({"auth": both})).start().await;
        let keys = [[("X-API-Key", kept.key.as_str())], [("X-API-Key", lost.key.as_str())]];
        let (mut stays, _) = open(gateway.data, "/ws?clientId=a", &keys[0]).await.unwrap();
        let (mut goes, _) = open(gateway.data, "/ws?clientId=b", &keys[1]).await.unwrap();
        reload(&gateway, &setup, json!({"keys": [kept.entry]})).await;
        assert_eq!(close_code(&mut goes, PATIENCE).await, 1008, "{mode}");
        assert_eq!(ask(gateway.data, ("GET", "/queue"), &keys[1]).await.status, 401, "{mode}");
        assert_eq!(handshake(gateway.data, &keys[1]).await, 401, "{mode}");
        assert_eq!(ask(gateway.data, ("GET", "/queue"), &keys[0]).await.status, 200, "{mode}");
        // A ping is answered: it is open.
        stays.send(Message::Ping("x".into())).await.unwrap();
        let ponged =
            async { while !matches!(stays.next().await.unwrap().unwrap(), Message::Pong(_)) {} };
        tokio::time::timeout(PATIENCE, ponged).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_ends_at_its_time_for_open_sockets_too() {
    let farm = farm(1).await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let short = made("short", &json!({"expires": soon.to_string()}));
    let gateway = Setup::of(&farm).with(json!({"auth": {"keys": [short.entry]}})).start().await;
    let key = [("X-API-Key", short.key.as_str())];
    let (mut socket, _) = open(gateway.data, "/ws?clientId=a", &key).await.unwrap();
    assert_eq!(close_code(&mut socket, PATIENCE).await, 1008);
    ask(gateway.data, ("GET", "/queue"), &key).await.assert_refusal(401, "unauthorized");
}

#[tokio::test]
async fn a_new_password_a_logout_and_a_closed_door_end_sockets() {
    let farm = farm(1).await;
    let anna = user("anna");
    let setup = Setup::of(&farm);
    let gateway = setup.start().await;
    let (mut nobody, _) = open(gateway.data, "/ws?clientId=n", &[]).await.unwrap();
    reload(&gateway, &setup, json!({"users": [anna]})).await;
    assert_eq!(close_code(&mut nobody, PATIENCE).await, 1008, "the door was closed");

    let cookies = [
        log_in(gateway.data, "anna", "hunter2").await,
        log_in(gateway.data, "anna", "hunter2").await,
    ];
    let shown = [[("Cookie", cookies[0].as_str())], [("Cookie", cookies[1].as_str())]];
    let (mut one, _) = open(gateway.data, "/ws?clientId=a", &shown[0]).await.unwrap();
    let (mut two, _) = open(gateway.data, "/ws?clientId=b", &shown[1]).await.unwrap();
    ask(gateway.data, ("POST", "/lb/logout"), &shown[0]).await;
    assert_eq!(close_code(&mut one, PATIENCE).await, 1008, "its login is over");
    assert_eq!(ask(gateway.data, ("GET", "/queue"), &shown[1]).await.status, 200, "another is not");

    let mut changed = anna.clone();
    changed["password_hash"] = comfygate::auth::password::hash("another").unwrap().into();
    reload_again(&gateway, &setup, json!({"users": [changed]})).await;
    assert_eq!(close_code(&mut two, PATIENCE).await, 1008, "its password is another");
    assert_eq!(ask(gateway.data, ("GET", "/queue"), &shown[1]).await.status, 401);
}

/// A second reload, of which the log has said the words before: what shows it is what changes.
async fn reload_again(gateway: &Gateway, setup: &Setup, auth: Value) {
    setup.clone().with(json!({"auth": auth})).write();
    gateway.signal("HUP").await;
}
