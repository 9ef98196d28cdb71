//! The relay between real sockets, with a real WebSocket implementation at both ends.

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::*;

/// Longer than any bound of the relay, in real time.
const PATIENCE: Duration = Duration::from_secs(20);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(connect, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

type Socket = WebSocketStream<TcpStream>;

/// A WebSocket client and server that believe to have shaken hands, and the relay between them.
async fn websockets() -> (Socket, Socket, oneshot::Sender<StopReason>, JoinHandle<RelayEnd>) {
    let (client, near_client) = pair().await;
    let (near_backend, backend) = pair().await;
    let (stop, stopped) = oneshot::channel();
    let options = RelayOptions::default();
    let relay = relay(near_client, near_backend, Prefix::default(), or_never(stopped), options);
    let config = Some(WebSocketConfig::default().max_frame_size(None).max_message_size(None));
    let client = WebSocketStream::from_raw_socket(client, Role::Client, config).await;
    let backend = WebSocketStream::from_raw_socket(backend, Role::Server, config).await;
    (client, backend, stop, tokio::spawn(relay))
}

async fn next(socket: &mut Socket) -> Message {
    timeout(PATIENCE, socket.next()).await.expect("nothing comes").unwrap().unwrap()
}

/// The end of the stream behind a Close.
async fn over(socket: &mut Socket) {
    let last = timeout(PATIENCE, socket.next()).await.expect("no end");
    assert!(last.is_none(), "{last:?}");
}

fn close(code: u16, reason: &str) -> CloseFrame {
    CloseFrame { code: CloseCode::from(code), reason: reason.to_owned().into() }
}

#[tokio::test]
async fn pings_and_a_close_with_its_own_code_and_reason_pass() {
    let (mut client, mut backend, _stop, relay) = websockets().await;
    client.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(next(&mut backend).await, Message::Ping("are you there".into()));
    backend.flush().await.unwrap();
    assert_eq!(next(&mut client).await, Message::Pong("are you there".into()));
    client.close(Some(close(4000, "tab closed"))).await.unwrap();
    assert_eq!(next(&mut backend).await, Message::Close(Some(close(4000, "tab closed"))));
    over(&mut backend).await;
    assert!(
        matches!(next(&mut client).await, Message::Close(Some(frame)) if u16::from(frame.code) == 4000)
    );
    over(&mut client).await;
    assert_eq!(relay.await.unwrap().cause, EndCause::ClientClosed { code: 4000 });
}

#[tokio::test]
async fn large_messages_pass_both_ways_at_once_and_in_order() {
    const MESSAGES: usize = 40;
    let (client, backend, _stop, relay) = websockets().await;
    let message = |index: usize| Message::binary(vec![index as u8; 1 + index * 20_000]);
    let exchange = |socket: Socket, closes: bool| async move {
        let (mut sink, mut stream) = socket.split();
        let sends = async {
            for index in 0..MESSAGES {
                sink.send(message(index)).await.unwrap();
            }
        };
        let receives = async {
            for index in 0..MESSAGES {
                let got = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
                assert!(got == message(index), "message {index} differs");
            }
        };
        tokio::join!(sends, receives);
        let mut socket = sink.reunite(stream).unwrap();
        if closes {
            socket.close(None).await.unwrap();
        }
        while let Some(Ok(_)) = timeout(PATIENCE, socket.next()).await.expect("no end") {}
    };
    tokio::join!(async { tokio::spawn(exchange(client, true)).await.unwrap() }, async {
        tokio::spawn(exchange(backend, false)).await.unwrap();
    });
    let end = relay.await.unwrap();
    assert_eq!(end.cause, EndCause::ClientClosed { code: frames::NO_STATUS });
    assert_eq!((end.up.frames, end.down.frames), (MESSAGES as u64 + 1, MESSAGES as u64 + 1));
    assert!(end.down.bytes > 15_000_000);
}

#[tokio::test]
async fn a_reset_by_the_backend_reaches_the_client_as_1012_within_a_second() {
    let (mut client, backend, _stop, relay) = websockets().await;
    let stream = backend.into_inner();
    socket_reset(stream);
    let start = std::time::Instant::now();
    let Message::Close(Some(frame)) = next(&mut client).await else { panic!("no Close") };
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(u16::from(frame.code), 1012);
    over(&mut client).await;
    assert_eq!(relay.await.unwrap().cause, EndCause::BackendGone);
}

#[tokio::test]
async fn a_stop_reaches_the_client_as_1012_while_both_sides_are_sending() {
    let (client, backend, stop, relay) = websockets().await;
    let (mut up, mut heard) = client.split();
    let (mut down, mut ignored) = backend.split();
    let uploads =
        tokio::spawn(
            async move { while up.send(Message::binary(vec![1; 50_000])).await.is_ok() {} },
        );
    let downloads =
        tokio::spawn(
            async move { while down.send(Message::binary(vec![2; 50_000])).await.is_ok() {} },
        );
    tokio::spawn(async move { while let Some(Ok(_)) = ignored.next().await {} });
    for _ in 0..20 {
        assert!(timeout(PATIENCE, heard.next()).await.unwrap().unwrap().unwrap().is_binary());
    }
    stop.send(StopReason::BackendDisabled).unwrap();
    let closed = async {
        loop {
            match heard.next().await.expect("ends without a Close").expect("fails before a Close") {
                Message::Close(frame) => return frame.expect("a code"),
                other => assert_eq!(other.len(), 50_000),
            }
        }
    };
    let frame = timeout(Duration::from_secs(1), closed).await.expect("later than a second");
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1012, "backend disabled"));
    let end = timeout(PATIENCE, relay).await.unwrap().unwrap();
    assert_eq!(end.cause, EndCause::Stopped(StopReason::BackendDisabled));
    drop(heard);
    timeout(PATIENCE, uploads).await.unwrap().unwrap();
    timeout(PATIENCE, downloads).await.unwrap().unwrap();
}

/// Closes with a reset instead of an end.
fn socket_reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}
