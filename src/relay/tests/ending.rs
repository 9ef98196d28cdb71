//! How a relay ends: who gets which Close, and when.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const INSTANTLY: Duration = Duration::ZERO;

/// Half of a frame of 100 bytes, and the other half.
fn halves() -> (Vec<u8>, Vec<u8>) {
    let mut frame = plain(0x82, &[9; 100]);
    let second = frame.split_off(50);
    (frame, second)
}

#[tokio::test(start_paused = true)]
async fn a_close_of_the_client_and_its_answer_pass_and_both_connections_end() {
    let mut rig = Rig::new(64);
    send(&mut rig.client, &client_close(4000)).await;
    expect(&mut rig.backend, &client_close(4000)).await;
    let answer = close_frame(4000, "bye");
    send(&mut rig.backend, &answer).await;
    assert_eq!(rest(&mut rig.client).await, answer);
    assert_eq!(rest(&mut rig.backend).await, b"");
    assert_eq!(rig.start.elapsed(), INSTANTLY);
    let end = rig.end().await;
    assert_eq!(end.cause, EndCause::ClientClosed { code: 4000 });
    assert_eq!((end.up.frames, end.down.frames, end.told_client), (1, 1, None));
}

#[tokio::test(start_paused = true)]
async fn a_close_of_the_backend_passes_even_when_it_hangs_up_behind_it() {
    let mut rig = Rig::new(64);
    send(&mut rig.backend, &close_frame(1009, "")).await;
    drop(rig.backend);
    expect(&mut rig.client, &close_frame(1009, "")).await;
    send(&mut rig.client, &client_close(1009)).await;
    assert_eq!(rest(&mut rig.client).await, b"");
    assert_eq!(rig.start.elapsed(), INSTANTLY);
    assert_eq!(rig.relay.await.unwrap().cause, EndCause::BackendClosed { code: 1009 });
}

#[tokio::test(start_paused = true)]
async fn the_client_has_five_seconds_to_answer_the_backends_close() {
    let mut rig = Rig::new(64);
    send(&mut rig.backend, &close_frame(1000, "")).await;
    let (read, took) = timed(rest(&mut rig.client)).await;
    assert_eq!((close_in(&read), took), (Some(1000), 5 * SECOND));
    assert_eq!(rig.end().await.cause, EndCause::BackendClosed { code: 1000 });
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_close_is_not_answered_gets_its_own_code_back() {
    let mut rig = Rig::new(64);
    send(&mut rig.client, &client_close(3001)).await;
    let (read, took) = timed(rest(&mut rig.client)).await;
    assert_eq!((close_in(&read), took), (Some(3001), 5 * SECOND));
    assert_eq!(rest(&mut rig.backend).await, client_close(3001));
    assert_eq!(rig.end().await.cause, EndCause::ClientClosed { code: 3001 });
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_close_is_answered_by_hanging_up_gets_its_own_code_back() {
    let mut rig = Rig::new(64);
    send(&mut rig.client, &client_close(1000)).await;
    expect(&mut rig.backend, &client_close(1000)).await;
    drop(rig.backend);
    let (read, took) = timed(rest(&mut rig.client)).await;
    assert_eq!((close_in(&read), took), (Some(1000), INSTANTLY));
    assert_eq!(rig.relay.await.unwrap().cause, EndCause::ClientClosed { code: 1000 });
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_hangs_up_gives_the_client_1012_behind_its_last_frames() {
    for pipe in [1, 7, 64, 4096] {
        let mut rig = Rig::new(pipe);
        let last = plain(0x81, &[b'x'; 300]);
        let mut backend = rig.backend;
        let sent = last.clone();
        tokio::spawn(async move { send(&mut backend, &sent).await });
        expect(&mut rig.client, &last).await;
        let expected = close_frame(1012, "backend connection lost");
        expect(&mut rig.client, &expected).await;
        send(&mut rig.client, &client_close(1012)).await;
        assert_eq!(rest(&mut rig.client).await, b"");
        assert_eq!(rig.start.elapsed(), INSTANTLY);
        let end = rig.relay.await.unwrap();
        assert_eq!((end.cause, end.told_client), (EndCause::BackendGone, Some(1012)));
        assert_eq!(end.down, Traffic { bytes: last.len() as u64, frames: 1 });
    }
}

/// In real time, since a paused clock waits for the writer, which never rests.
#[tokio::test]
async fn a_client_that_is_writing_when_the_backend_goes_still_gets_the_last_frame_and_1012() {
    let options = RelayOptions { answer_wait: SECOND / 20, ..RelayOptions::default() };
    let mut rig = Rig::with(64, Prefix::default(), options);
    send(&mut rig.backend, &plain(0x81, b"last words")).await;
    drop(rig.backend);
    let upload = plain(0x82, &[1; 5000]);
    let (mut reads, mut writes) = tokio::io::split(rig.client);
    let writer = tokio::spawn(async move { while writes.write_all(&upload).await.is_ok() {} });
    let mut read = Vec::new();
    timeout(LONG, reads.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(read.starts_with(&plain(0x81, b"last words")));
    assert_eq!(close_in(&read), Some(1012));
    assert!(rig.start.elapsed() <= 2 * SECOND, "{:?}", rig.start.elapsed());
    drop(reads);
    timeout(LONG, writer).await.unwrap().unwrap();
    assert_eq!(rig.relay.await.unwrap().cause, EndCause::BackendGone);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_hangs_up_inside_a_frame_ends_the_client_without_a_close() {
    let mut rig = Rig::new(64);
    send(&mut rig.backend, &halves().0).await;
    drop(rig.backend);
    let (read, took) = timed(rest(&mut rig.client)).await;
    assert_eq!((read, took), (halves().0, INSTANTLY));
    let end = rig.relay.await.unwrap();
    assert_eq!((end.cause, end.told_client), (EndCause::BackendGone, None));
}

#[tokio::test(start_paused = true)]
async fn each_reason_to_stop_has_its_code_and_the_backend_is_told_too() {
    for (reason, code) in [
        (StopReason::BackendDown, 1012),
        (StopReason::BackendDisabled, 1012),
        (StopReason::BackendRemoved, 1012),
        (StopReason::AccessEnded, 1008),
        (StopReason::GatewayShutdown, 1001),
    ] {
        let mut rig = Rig::new(256);
        rig.stop.send(reason).unwrap();
        expect(&mut rig.client, &close_frame(code, reason.close().1)).await;
        send(&mut rig.client, &client_close(code)).await;
        assert_eq!(rest(&mut rig.client).await, b"");
        let told = rest(&mut rig.backend).await;
        assert_eq!((told[1] & 0x80, close_in(&told)), (0x80, Some(1001)), "masked, 1001");
        assert_eq!(rig.start.elapsed(), INSTANTLY);
        let end = rig.relay.await.unwrap();
        assert_eq!((end.cause, end.told_client), (EndCause::Stopped(reason), Some(code)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_our_close_is_cut_after_a_second() {
    let mut rig = Rig::new(64);
    rig.stop.send(StopReason::BackendDown).unwrap();
    let (read, took) = timed(rest(&mut rig.client)).await;
    assert_eq!((close_in(&read), took), (Some(1012), SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_stop_inside_a_frame_waits_for_its_end_and_passes_nothing_behind_it() {
    let mut rig = Rig::new(4096);
    let (first, second) = halves();
    send(&mut rig.backend, &first).await;
    expect(&mut rig.client, &first).await;
    rig.stop.send(StopReason::BackendDisabled).unwrap();
    tokio::time::sleep(SECOND / 10).await;
    send(&mut rig.backend, &[second.clone(), plain(0x81, b"too late")].concat()).await;
    expect(&mut rig.client, &second).await;
    expect(&mut rig.client, &close_frame(1012, "backend disabled")).await;
    assert!(rig.start.elapsed() < SECOND);
    send(&mut rig.client, &client_close(1012)).await;
    assert_eq!(rest(&mut rig.client).await, b"");
    assert_eq!(rig.relay.await.unwrap().down.frames, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_inside_a_frame_that_never_ends_still_ends_the_client_within_a_second() {
    let mut rig = Rig::new(4096);
    send(&mut rig.backend, &halves().0).await;
    expect(&mut rig.client, &halves().0).await;
    rig.stop.send(StopReason::BackendDown).unwrap();
    let (read, took) = timed(rest(&mut rig.client)).await;
    assert_eq!((read, took), (vec![], SECOND / 2));
    assert_eq!(rig.relay.await.unwrap().told_client, None);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_dropped_after_five_seconds() {
    let mut rig = Rig::new(16);
    send(&mut rig.backend, &plain(0x82, &[1; 28])).await;
    rig.stop.send(StopReason::BackendDown).unwrap();
    let (end, took) = timed(rig.relay).await;
    assert_eq!((end.unwrap().told_client, took), (Some(1012), 5 * SECOND));
    drop(rig.client);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_late_still_gets_what_was_held_and_its_close() {
    let mut rig = Rig::new(16);
    send(&mut rig.backend, &plain(0x82, &[1; 28])).await;
    rig.stop.send(StopReason::BackendRemoved).unwrap();
    tokio::time::sleep(4 * SECOND).await;
    expect(&mut rig.client, &plain(0x82, &[1; 28])).await;
    expect(&mut rig.client, &close_frame(1012, "backend removed")).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanishes_ends_the_backend_with_1001() {
    let mut rig = Rig::new(64);
    drop(rig.client);
    let backend = rest(&mut rig.backend).await;
    assert_eq!(close_in(&backend), Some(1001));
    drop(rig.backend);
    assert_eq!(rig.relay.await.unwrap().cause, EndCause::ClientGone);
    assert_eq!(rig.start.elapsed(), INSTANTLY);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanishes_inside_a_frame_leaves_the_backend_without_a_close() {
    let mut rig = Rig::new(64);
    send(&mut rig.client, &halves().0).await;
    drop(rig.client);
    assert_eq!(rest(&mut rig.backend).await, halves().0);
    drop(rig.backend);
    assert_eq!(rig.relay.await.unwrap().cause, EndCause::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_stops_sending_still_gets_the_backends_answer() {
    let mut rig = Rig::new(64);
    rig.client.shutdown().await.unwrap();
    assert_eq!(close_in(&rest(&mut rig.backend).await), Some(1001));
    let answer = [plain(0x81, b"result"), close_frame(1001, "").to_vec()].concat();
    send(&mut rig.backend, &answer).await;
    assert_eq!(rest(&mut rig.client).await, answer);
    assert_eq!(rig.end().await.cause, EndCause::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_and_vanishes_has_its_close_passed_on() {
    let mut rig = Rig::new(64);
    send(&mut rig.backend, &plain(0x81, b"unread")).await;
    send(&mut rig.client, &client_close(1000)).await;
    drop(rig.client);
    assert_eq!(rest(&mut rig.backend).await, client_close(1000));
    assert!(rig.start.elapsed() <= 5 * SECOND);
    assert_eq!(rig.relay.await.unwrap().cause, EndCause::ClientClosed { code: 1000 });
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_impossible_length_is_not_passed_on_and_ends_both_with_1002() {
    let bad = [0x82, 0x7f, 0xff, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3];
    let mut rig = Rig::new(256);
    send(&mut rig.client, &[plain(0x81, b"good"), bad.to_vec()].concat()).await;
    expect(&mut rig.backend, &plain(0x81, b"good")).await;
    assert_eq!(close_in(&rest(&mut rig.backend).await), Some(1002));
    assert_eq!(close_in(&rest(&mut rig.client).await), Some(1002));
    let refused = |from| EndCause::Refused { from, error: frames::FrameError::Malformed };
    assert_eq!(rig.relay.await.unwrap().cause, refused(Side::Client));

    let mut rig = Rig::new(256);
    send(&mut rig.backend, &[plain(0x81, b"good"), bad.to_vec()].concat()).await;
    expect(&mut rig.client, &plain(0x81, b"good")).await;
    assert_eq!(close_in(&rest(&mut rig.client).await), Some(1002));
    assert_eq!(close_in(&rest(&mut rig.backend).await), Some(1002));
    assert_eq!(rig.relay.await.unwrap().cause, refused(Side::Backend));
}

#[tokio::test(start_paused = true)]
async fn a_bad_header_whose_beginning_has_passed_ends_the_other_side_without_a_close() {
    let mut rig = Rig::new(256);
    send(&mut rig.client, &[0x82, 0x7f]).await;
    expect(&mut rig.backend, &[0x82, 0x7f]).await;
    send(&mut rig.client, &[0xff; 8]).await;
    assert_eq!(rest(&mut rig.backend).await, b"");
    assert_eq!(close_in(&rest(&mut rig.client).await), Some(1002));
}

#[tokio::test(start_paused = true)]
async fn a_clients_frame_over_the_limit_is_refused_with_1009() {
    let options = RelayOptions { max_client_frame: Some(1000), ..RelayOptions::default() };
    let mut rig = Rig::with(4096, Prefix::default(), options);
    send(&mut rig.backend, &plain(0x82, &[0; 2000])).await;
    expect(&mut rig.client, &plain(0x82, &[0; 2000])).await;
    send(&mut rig.client, &plain(0x82, &[0; 1000])).await;
    expect(&mut rig.backend, &plain(0x82, &[0; 1000])).await;
    send(&mut rig.client, &plain(0x82, &[0; 1001])).await;
    assert_eq!(close_in(&rest(&mut rig.client).await), Some(1009));
    assert_eq!(close_in(&rest(&mut rig.backend).await), Some(1009));
    assert_eq!(rig.relay.await.unwrap().cause.label(), "frame_too_big");
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_client_closes_completes_its_handshake() {
    let mut rig = Rig::new(64);
    send(&mut rig.client, &client_close(1000)).await;
    expect(&mut rig.backend, &client_close(1000)).await;
    rig.stop.send(StopReason::BackendDown).unwrap();
    let (read, took) = timed(rest(&mut rig.client)).await;
    assert_eq!((close_in(&read), took), (Some(1000), INSTANTLY));
    assert_eq!(rest(&mut rig.backend).await, b"");
    assert_eq!(rig.relay.await.unwrap().cause, EndCause::ClientClosed { code: 1000 });
}
