//! A WebSocket client.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// Opens a WebSocket; the response tells who answered.
pub(crate) async fn open(
    address: SocketAddr,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<(Socket, Response), Error> {
    open_on(TcpStream::connect(address).await?, target, headers).await
}

/// The same on any stream.
pub(crate) async fn open_on<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<(WebSocketStream<S>, Response), Error> {
    let mut request = format!("ws://gate.example{target}").into_client_request()?;
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    }
    client_async(request, stream).await
}

/// The backend that a handshake's response names.
pub(crate) fn backend(response: &Response) -> String {
    let name = response.headers().get("x-comfygate-backend").expect("x-comfygate-backend");
    name.to_str().unwrap().to_owned()
}

/// Reads until the close frame and returns its code, 1005 for none in it, 1006 for no frame.
pub(crate) async fn close_code<S>(socket: &mut WebSocketStream<S>, within: Duration) -> u16
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let closing = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => {
                    return frame.map_or(1005, |frame| frame.code.into());
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return 1006,
            }
        }
    };
    timeout(within, closing).await.expect("the socket closes in time")
}
