//! A TCP proxy that does to connections what networks do: it delays, drips, resets in the middle,
//! goes silent, cuts off, and closes one way before the other has been read.
//!
//! It stands between gateway and backend, or between client and gateway, and knows nothing of HTTP.
//! Each direction of each connection has a [`Fault`], given by a function of the connection's
//! number, so that a test can break the third one, or draw faults from a seed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Each piece comes so much later.
    Late(Duration),
    /// So many bytes at a time, with a pause between.
    Drip(usize, Duration),
    /// After so many bytes both connections are reset.
    Reset(u64),
    /// After so many bytes nothing passes any more, and nothing is read.
    Silent(u64),
    /// After so many bytes the receiver gets a FIN, and the rest is thrown away.
    Cut(u64),
    /// After so many bytes the *sender* gets a FIN, while what it sends still passes.
    FinBack(u64),
}

impl Fault {
    /// Bytes until it strikes.
    fn point(self) -> Option<u64> {
        match self {
            Self::Reset(at) | Self::Silent(at) | Self::Cut(at) | Self::FinBack(at) => Some(at),
            Self::None | Self::Late(_) | Self::Drip(..) => None,
        }
    }
}

/// Faults of a connection: from the one who connected, and towards it.
pub(crate) type Pair = (Fault, Fault);

type Plan = Box<dyn Fn(usize) -> Pair + Send>;

/// The running proxy.
pub(crate) struct FaultProxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    target: SocketAddr,
    plan: Mutex<Plan>,
    /// Cancelled to reset the connections of now.
    era: Mutex<CancellationToken>,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl FaultProxy {
    /// A proxy to this address, without a fault yet.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            plan: Mutex::new(Box::new(|_| Pair::default())),
            era: Mutex::default(),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let own = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&own);
                tokio::spawn(async move {
                    shared.open.fetch_add(1, Relaxed);
                    let _ = shared.serve(stream).await;
                    shared.open.fetch_sub(1, Relaxed);
                });
            }
        });
        Self { address, shared, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections from now on have these faults.
    pub(crate) fn set(&self, from: Fault, towards: Fault) {
        self.plan(move |_| (from, towards));
    }

    /// Connections from now on have the faults of this function; they are numbered from 0.
    pub(crate) fn plan(&self, plan: impl Fn(usize) -> Pair + Send + 'static) {
        self.shared.accepted.store(0, Relaxed);
        *self.shared.plan.lock() = Box::new(plan);
    }

    /// Connections from now on are fine.
    pub(crate) fn heal(&self) {
        self.set(Fault::None, Fault::None);
    }

    /// Resets every connection there is.
    pub(crate) fn reset_all(&self) {
        std::mem::take(&mut *self.shared.era.lock()).cancel();
    }

    /// Connections that it holds.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.reset_all();
    }
}

impl Shared {
    async fn serve(&self, near: TcpStream) -> io::Result<()> {
        let era = self.era.lock().child_token();
        let faults = (self.plan.lock())(self.accepted.fetch_add(1, Relaxed));
        let Ok(far) = TcpStream::connect(self.target).await else {
            // As if the proxy were not there.
            return near.set_zero_linger();
        };
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near_in, near_out) = near.into_split();
        let (far_in, far_out) = far.into_split();
        let (near_out, far_out) = (Out::new(near_out), Out::new(far_out));
        let up = pump(near_in, &far_out, &near_out, faults.0, &era);
        let down = pump(far_in, &near_out, &far_out, faults.1, &era);
        let is_reset = tokio::select! {
            ended = async move { tokio::try_join!(up, down) } => ended.is_err(),
            () = era.cancelled() => true,
        };
        if is_reset {
            for out in [near_out, far_out] {
                let half = out.0.into_inner();
                half.as_ref().set_zero_linger()?;
                // Dropped, it would send a FIN first.
                half.forget();
            }
        }
        Ok(())
    }
}

/// A writing half that both directions may close.
struct Out(tokio::sync::Mutex<OwnedWriteHalf>);

impl Out {
    fn new(half: OwnedWriteHalf) -> Self {
        Self(tokio::sync::Mutex::new(half))
    }

    async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().await.write_all(bytes).await
    }

    async fn fin(&self) {
        let _ = self.0.lock().await.shutdown().await;
    }
}

/// Passes one direction on, until its end or its fault's.
async fn pump(
    mut from: OwnedReadHalf,
    to: &Out,
    back: &Out,
    fault: Fault,
    era: &CancellationToken,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut left = fault.point();
    loop {
        if left == Some(0) {
            match fault {
                Fault::Reset(_) => {
                    era.cancel();
                    return Ok(());
                }
                Fault::Silent(_) => std::future::pending().await,
                Fault::Cut(_) => {
                    to.fin().await;
                    while from.read(&mut buffer).await? > 0 {}
                    return Ok(());
                }
                _ => back.fin().await,
            }
            left = None;
        }
        let most = left.map_or(buffer.len(), |left| buffer.len().min(left as usize));
        let size = from.read(&mut buffer[..most]).await?;
        if size == 0 {
            to.fin().await;
            return Ok(());
        }
        left = left.map(|left| left - size as u64);
        match fault {
            Fault::Drip(at_once, pause) => {
                for piece in buffer[..size].chunks(at_once.max(1)) {
                    to.send(piece).await?;
                    tokio::time::sleep(pause).await;
                }
            }
            Fault::Late(delay) => {
                tokio::time::sleep(delay).await;
                to.send(&buffer[..size]).await?;
            }
            _ => to.send(&buffer[..size]).await?,
        }
    }
}
