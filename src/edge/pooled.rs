//! A client's `/ws` in pool mode: it ends here, not at a backend.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use pingora_core::protocols::Stream;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::admit::Handshake;
use super::envelope::Envelope;
use super::refuse;
use super::websocket::HANDSHAKE_TIMEOUT;
use crate::auth::grant::ended;
use crate::comfy::routes::query_value;
use crate::gateway::Gateway;
use crate::pool::Pool;
use crate::pool::clients::{ClientInfo, MAX_SID, mint_sid, response_head, serve as serve_client};
use crate::rejection::{Kind, Rejection};
use crate::relay::StopReason;

/// Serves a client to its end.
pub(super) async fn serve(
    gateway: &Arc<Gateway>,
    pool: &Arc<Pool>,
    mut stream: Stream,
    envelope: &Envelope,
    handshake: &Handshake,
) {
    let sid = query_value(&handshake.target, "clientId").map(decoded);
    if let Some(refused) = sid.as_deref().and_then(|sid| refusal(pool, sid)) {
        gateway.metrics.refused("GET", &refused);
        return refuse(stream, &refused.to_http1()).await;
    }
    let written = async {
        stream.write_all(&response_head(&handshake.key)).await?;
        stream.flush().await
    };
    if !matches!(timeout(HANDSHAKE_TIMEOUT, written).await, Ok(Ok(()))) {
        return;
    }
    gateway.metrics.front.answered("GET", 101, envelope.started.elapsed());
    let _placement = gateway.affinity.open_socket(envelope.key, gateway.clock.now());
    let sid = sid.filter(|sid| !sid.is_empty()).unwrap_or_else(mint_sid);
    let _present = pool.came(&sid, envelope.key, envelope.zone.as_deref());
    let client = ClientInfo {
        sid: Some(sid),
        key: envelope.key,
        caller: envelope.caller.to_string().into(),
        has_origin: handshake.headers.iter().any(|(name, _)| name == "origin"),
    };
    // At once: who comes back to the next process gets what it missed.
    let leaving = gateway.leaving();
    let access_ended = ended(Arc::clone(gateway), envelope.grant.clone());
    let stop = async move {
        tokio::select! {
            () = leaving => StopReason::GatewayShutdown,
            () = access_ended => StopReason::AccessEnded,
        }
    };
    Box::pin(serve_client(stream, pool.hub(), client, stop)).await;
}

/// As aiohttp reads a query: `+` is a space, `%XX` a byte.
fn decoded(value: &str) -> String {
    let spaced = value.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

fn refusal(pool: &Pool, sid: &str) -> Option<Rejection> {
    let refused = |message: &str| Some(Rejection::new(Kind::BadRequest, message));
    if sid.len() > MAX_SID {
        refused("clientId is longer than 256 bytes")
    } else if pool.is_own_sid(sid) {
        refused("this clientId is the gateway's own")
    } else {
        None
    }
}
