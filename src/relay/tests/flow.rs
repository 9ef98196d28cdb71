//! An open relay: order, bounds, fairness, size.

use std::sync::Arc;
use std::task::{Context, Waker};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::super::machine::Relay;
use super::super::pump::READ_CHUNK;
use super::*;

/// Frames of all opcodes but Close, some with reserved bits (as compression sets them).
fn random_frames(rng: &mut StdRng) -> Vec<u8> {
    let mut wire = Vec::new();
    for _ in 0..rng.random_range(0..60) {
        let first: u8 = rng.random();
        let limit = if first & 8 != 0 { 125 } else { 3000 };
        let payload: Vec<u8> = (0..rng.random_range(0..=limit)).map(|_| rng.random()).collect();
        let first = if first & 0x0f == 8 { first ^ 1 } else { first };
        wire.extend(plain(first, &payload));
    }
    wire
}

#[tokio::test(start_paused = true)]
async fn bytes_pass_unchanged_and_in_order_both_ways_at_once() {
    for seed in 0..40u64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut up = random_frames(&mut rng);
        let mut down = random_frames(&mut rng);
        up.extend(client_close(4321));
        down.extend(close_frame(4321, "as you say"));
        let Rig { client, backend, relay, .. } = Rig::new(rng.random_range(1..200));
        let exchange = |mut stream: DuplexStream, sends: Vec<u8>| {
            tokio::spawn(async move {
                let (mut reads, mut writes) = tokio::io::split(&mut stream);
                let mut read = Vec::new();
                let (sent, received) = tokio::join!(
                    writes.write_all(&sends),
                    timeout(LONG, reads.read_to_end(&mut read))
                );
                sent.unwrap();
                received.expect("never ends").unwrap();
                read
            })
        };
        let (client, backend) = (exchange(client, up.clone()), exchange(backend, down.clone()));
        assert!(client.await.unwrap() == down, "downwards differs, seed {seed}");
        assert!(backend.await.unwrap() == up, "upwards differs, seed {seed}");
        let end = relay.await.unwrap();
        assert_eq!(end.up.bytes, up.len() as u64, "seed {seed}");
        assert_eq!(end.down.bytes, down.len() as u64, "seed {seed}");
        assert_eq!(end.told_client, None, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_relay_lives_for_days() {
    let mut rig = Rig::new(64);
    tokio::time::sleep(LONG * 72).await;
    send(&mut rig.client, &plain(0x89, b"still there?")).await;
    expect(&mut rig.backend, &plain(0x89, b"still there?")).await;
    send(&mut rig.backend, &plain(0x8a, b"still there?")).await;
    expect(&mut rig.client, &plain(0x8a, b"still there?")).await;
    assert!(!rig.relay.is_finished());
}

#[tokio::test(start_paused = true)]
async fn bytes_read_behind_the_handshakes_come_first() {
    let prefix = Prefix {
        client: plain(0x81, b"flags").into(),
        backend: plain(0x81, b"status")[..3].to_vec().into(),
    };
    let mut rig = Rig::with(64, prefix, RelayOptions::default());
    send(&mut rig.client, &plain(0x81, b"next")).await;
    send(&mut rig.backend, &plain(0x81, b"status")[3..]).await;
    expect(&mut rig.backend, &[plain(0x81, b"flags"), plain(0x81, b"next")].concat()).await;
    expect(&mut rig.client, &plain(0x81, b"status")).await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_what_was_held_is_freed_once_it_is_delivered() {
    let held = Arc::new(plain(0x81, b"early"));
    let client = Bytes::from_owner(Shared(Arc::clone(&held)));
    let mut rig = Rig::with(64, Prefix { client, backend: Bytes::new() }, RelayOptions::default());
    expect(&mut rig.backend, &held).await;
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(!rig.relay.is_finished());
}

/// Bytes whose owner can be seen to let go of them.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_behind_the_handshake_counts() {
    let prefix = Prefix { client: client_close(1000).into(), backend: Bytes::new() };
    let mut rig = Rig::with(64, prefix, RelayOptions::default());
    expect(&mut rig.backend, &client_close(1000)).await;
    send(&mut rig.backend, &close_frame(1000, "")).await;
    assert_eq!(rig.end().await.cause, EndCause::ClientClosed { code: 1000 });
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_stalls_only_itself_in_bounded_memory() {
    const PIPE: usize = 1000;
    let mut rig = Rig::new(PIPE);
    let chunk = plain(0x82, &[7; 10_000]);
    let mut accepted = 0;
    while let Ok(written) =
        timeout(Duration::from_secs(1), rig.backend.write(&chunk[accepted % chunk.len()..])).await
    {
        accepted += written.unwrap();
        assert!(accepted <= READ_CHUNK + 2 * PIPE, "{accepted} bytes are held");
    }
    assert!(accepted >= 2 * PIPE, "stalled after {accepted} bytes");
    send(&mut rig.client, &plain(0x81, b"upwards")).await;
    expect(&mut rig.backend, &plain(0x81, b"upwards")).await;
    let whole: Vec<u8> = chunk.iter().copied().cycle().take(accepted).collect();
    expect(&mut rig.client, &whole).await;
}

#[tokio::test]
async fn what_is_held_is_bounded_and_given_back() {
    let (mut client, near_client) = duplex(100);
    let (mut backend, near_backend) = duplex(200_000);
    let mut relay =
        Relay::new(near_client, near_backend, Prefix::default(), RelayOptions::default());
    let mut stop = std::pin::pin!(pending::<StopReason>());
    let mut cx = Context::from_waker(Waker::noop());
    // The pipes' budget would run out, since the test and the relay are one task.
    let steps = tokio::task::coop::unconstrained(async {
        assert!(relay.poll(&mut cx, stop.as_mut()).is_pending());
        assert_eq!(relay.held(), 0);
        backend.write_all(&plain(0x82, &vec![1; 150_000])).await.unwrap();
        assert!(relay.poll(&mut cx, stop.as_mut()).is_pending());
        assert_eq!(relay.held(), READ_CHUNK - 100);
        let mut read = 0;
        while read < 150_010 {
            let mut some = [0; 100];
            read += client.read(&mut some).await.unwrap();
            assert!(relay.poll(&mut cx, stop.as_mut()).is_pending());
            assert!(relay.held() < READ_CHUNK);
        }
        assert_eq!(relay.held(), 0);
    });
    timeout(LONG, steps).await.expect("stuck");
}

#[tokio::test]
async fn streams_that_are_always_ready_do_not_keep_the_thread() {
    let endless = || tokio::io::join(tokio::io::repeat(0), tokio::io::sink());
    let mut relay = Relay::new(endless(), endless(), Prefix::default(), RelayOptions::default());
    let mut stop = std::pin::pin!(pending::<StopReason>());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(relay.poll(&mut cx, stop.as_mut()).is_pending());
}

/// In real time: such streams leave a paused clock no rest. Their use of the task's budget must not
/// keep the stop and the timers from being noticed.
#[tokio::test]
async fn a_stop_is_heard_over_streams_that_are_always_ready() {
    let endless = || tokio::io::join(tokio::io::repeat(0), tokio::io::sink());
    let (stop, stopped) = oneshot::channel();
    let options =
        RelayOptions { answer_wait: Duration::from_millis(20), ..RelayOptions::default() };
    let relay = relay(endless(), endless(), Prefix::default(), or_never(stopped), options);
    let relay = tokio::spawn(relay);
    stop.send(StopReason::GatewayShutdown).unwrap();
    let end = timeout(Duration::from_secs(2), relay).await.expect("goes on").unwrap();
    assert_eq!(end.cause, EndCause::Stopped(StopReason::GatewayShutdown));
    assert_eq!(end.told_client, Some(1001));
}

#[tokio::test]
async fn the_future_is_small() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, backend) =
        tokio::try_join!(TcpStream::connect(address), TcpStream::connect(address)).unwrap();
    let (_sender, mut receiver) = watch::channel(None);
    let stop = async move {
        loop {
            if let Some(reason) = *receiver.borrow_and_update() {
                return reason;
            }
            if receiver.changed().await.is_err() {
                pending::<()>().await;
            }
        }
    };
    let future = relay(client, backend, Prefix::default(), stop, RelayOptions::default());
    let size = std::mem::size_of_val(&future);
    assert!(size <= 1024, "{size} bytes");
}

#[tokio::test(start_paused = true)]
async fn buffering_streams_are_flushed_whenever_input_pauses() {
    let (mut client, near_client) = duplex(1 << 16);
    let (mut backend, near_backend) = duplex(1 << 16);
    let buffered = |stream| tokio::io::BufWriter::with_capacity(1 << 16, stream);
    let relay = tokio::spawn(relay(
        buffered(near_client),
        buffered(near_backend),
        Prefix::default(),
        pending(),
        RelayOptions::default(),
    ));
    for payload in [&b"x"[..], &[5; 3000]] {
        send(&mut client, &plain(0x82, payload)).await;
        expect(&mut backend, &plain(0x82, payload)).await;
        send(&mut backend, &plain(0x82, payload)).await;
        expect(&mut client, &plain(0x82, payload)).await;
    }
    send(&mut client, &client_close(1000)).await;
    expect(&mut backend, &client_close(1000)).await;
    drop(backend);
    assert_eq!(close_in(&rest(&mut client).await), Some(1000));
    assert_eq!(relay.await.unwrap().cause, EndCause::ClientClosed { code: 1000 });
}
