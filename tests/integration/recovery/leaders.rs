//! Replicas: leaders that are killed, frozen past the end of their Lease, or hand over.

use std::{
    mem::swap,
    sync::{Arc, Mutex},
};

use llmtune_webhooks_harness::{process::has_connection, proxy::Proxy, receiver::Answer};

use super::*;
use crate::support::replicas;

/// The shortest allowed duration.
const LEASE: &str = "--lease-duration=3s";
const LEASE_DURATION: Duration = Duration::from_secs(3);

/// Serializes these tests: with the shortest Lease a leader loses its leadership if the apiserver takes a second to
/// respond.
async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ALONE.lock().await
}

#[test]
fn killing_leaders_in_turn_loses_nothing() {
    run(async {
        let _alone = alone().await;
        let scene = Scene::new("turns").await;
        let receiver = signed_receiver(&scene).await;
        let (mut leader, mut standby) = replicas(&scene, LEASE).await;
        let jobs = Jobs::new(&scene).await;
        let driving = tokio::spawn(async move { jobs.drive(450, 25).await });
        for _ in 0..5 {
            flows(&receiver, 10).await;
            leader.process.kill();
            let killed = Instant::now();
            leads(&mut standby, SOON).await;
            println!(
                "the other replica leads {:?} after kill -9, with a lease of {LEASE_DURATION:?}",
                killed.elapsed()
            );
            leader.restart();
            leader.wait_readyz("standby", SOON).await;
            swap(&mut leader, &mut standby);
        }
        driving.await.unwrap();
        all_arrive(&receiver, 450).await;
    });
}

/// The process that sent each request to a receiver that answers like this.
fn senders(
    receiver: &Receiver,
    processes: [u32; 2],
    status: impl Fn() -> u16 + Send + Sync + 'static,
) -> Arc<Mutex<Vec<Option<u32>>>> {
    let senders: Arc<Mutex<Vec<Option<u32>>>> = Arc::default();
    let (remembered, port) = (Arc::clone(&senders), receiver.port);
    receiver.answer(move |post| {
        let sender = processes.into_iter().find(|process| has_connection(*process, post.from.port(), port));
        remembered.lock().unwrap().push(sender);
        Answer::status(status())
    });
    senders
}

/// Waits until no attempt is in flight: each request has a recorded outcome.
async fn idle(operator: &Operator, receivers: &[&Receiver]) {
    eventually("all attempts are settled", SOON, || async {
        let come: usize = receivers.iter().map(|receiver| receiver.count()).sum();
        (operator.metric("llmtune_webhooks_attempts_total", &[]) as usize == come).then_some(())
    })
    .await;
}

/// Waits until a deposed leader ends or stands by, and returns which.
async fn gives_way(operator: &mut Operator) -> String {
    let begun = Instant::now();
    loop {
        if let Some(status) = operator.process.try_wait() {
            return format!("ended with {status}");
        }
        if operator.get("/readyz").is_some_and(|(_, text)| text.starts_with("standby")) {
            return "stands by".into();
        }
        assert!(begun.elapsed() < SOON, "neither ended nor standing by\n{}", operator.process.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn replaced_leader_makes_no_attempt_after_resuming() {
    run(async {
        let _alone = alone().await;
        let scene = Scene::new("halted").await;
        let (good, failing) = (Receiver::start().await, Receiver::start().await);
        scene.webhook("good", &good.url(), &json!({}));
        scene.webhook("failing", &failing.url(), &patient());
        let (mut first, mut second) = replicas(&scene, LEASE).await;
        let processes = [first.process.pid(), second.process.pid()];
        let failure = Arc::new(Mutex::new(500));
        let answer = Arc::clone(&failure);
        let good_senders = senders(&good, processes, || 200);
        let failing_senders = senders(&failing, processes, move || *answer.lock().unwrap());
        let jobs = Jobs::new(&scene).await;
        for number in 0..20 {
            jobs.create(&format!("job-{number:04}")).await;
        }
        let each = async |numbers: std::ops::Range<usize>, completes: bool| {
            for number in numbers {
                let name = format!("job-{number:04}");
                if completes { jobs.complete(&name).await } else { jobs.start(&name).await }
            }
        };
        each(0..10, false).await;
        good.wait(10, SOON).await;
        failing.wait(20, SOON).await;
        idle(&first, &[&good, &failing]).await;
        first.process.freeze();
        let (halted, seen) = (Instant::now(), (good.count(), failing.count()));
        let of_the_first = |senders: &[Option<u32>]| senders.iter().all(|sender| *sender == Some(processes[0]));
        assert!(of_the_first(&good_senders.lock().unwrap()) && of_the_first(&failing_senders.lock().unwrap()));

        // When the old leader wakes up, all of this is in its sockets, and its retries are due.
        each(10..20, false).await;
        each(0..10, true).await;
        second.wait_readyz("leader", SOON).await;
        println!("the other replica leads {:?} after the first was halted", halted.elapsed());
        distinct(&good, 30).await;
        first.process.thaw();
        each(10..20, true).await;
        println!("the old leader {}", gives_way(&mut first).await);
        *failure.lock().unwrap() = 200;
        let (events, repeats) = distinct(&good, 40).await;
        in_order(&events, 20);
        println!("0 of 40 events missing, {repeats} repeats");
        eventually("what had failed is delivered", SOON, || async {
            let labels = [("webhook", "failing"), ("result", "delivered")];
            (second.metric("llmtune_webhooks_deliveries_total", &labels) as usize == 40).then_some(())
        })
        .await;
        let late = [&good_senders.lock().unwrap()[seen.0..], &failing_senders.lock().unwrap()[seen.1..]].concat();
        assert!(late.iter().all(|sender| *sender == Some(processes[1])), "{processes:?}: {late:?}");
    });
}

#[test]
fn resumed_leader_renews_its_lease_before_attempts() {
    run(async {
        let _alone = alone().await;
        let scene = Scene::new("halted-alone").await;
        let (good, failing) = (Receiver::start().await, Receiver::answering(|_| Answer::status(500)).await);
        scene.webhook("good", &good.url(), &json!({}));
        scene.webhook("failing", &failing.url(), &patient());
        let proxy = Proxy::start(scene.plane.port).await;
        let mut options = scene.options().argument(LEASE);
        options.apiserver_port = Some(proxy.port);
        let mut operator = Operator::start_ready(&scene.plane, &options).await;
        let jobs = Jobs::new(&scene).await;
        for number in 0..10 {
            jobs.create(&format!("job-{number:04}")).await;
            jobs.start(&format!("job-{number:04}")).await;
        }
        good.wait(10, SOON).await;
        failing.wait(20, SOON).await;
        idle(&operator, &[&good, &failing]).await;
        operator.process.freeze();
        let halted = tokio::time::Instant::now();
        let seen = (good.count(), failing.count());
        for number in 0..10 {
            jobs.complete(&format!("job-{number:04}")).await;
        }
        sleep_until(halted + LEASE_DURATION + Duration::from_secs(1)).await;
        // Prevents the old leader from renewing, however fast it is.
        proxy.cut();
        operator.process.thaw();
        eventually("it sees that its claim has lapsed", SOON, || async {
            (operator.metric("llmtune_webhooks_leader", &[]) as u64 == 0).then_some(())
        })
        .await;
        sleep(Duration::from_secs(3)).await;
        assert_eq!((good.count(), failing.count()), seen, "events and retries are due, and no attempt begins");
        proxy.mend();
        failing.answer(|_| Answer::status(200));
        let mended = Instant::now();
        let (events, repeats) = distinct(&good, 20).await;
        println!("0 of 20 events missing, {repeats} repeats, {:?} after the apiserver was back", mended.elapsed());
        in_order(&events, 10);
        distinct(&failing, 20).await;
        operator.wait_log("but nobody took it", SOON).await;
        assert!(operator.process.try_wait().is_none(), "it goes on");
    });
}

#[test]
fn graceful_handover_loses_and_repeats_nothing() {
    run(async {
        let _alone = alone().await;
        let scene = Scene::new("graceful").await;
        let receiver = signed_receiver(&scene).await;
        let (mut leader, mut standby) = replicas(&scene, LEASE).await;
        let jobs = Jobs::new(&scene).await;
        let driving = tokio::spawn(async move { jobs.drive(300, 50).await });
        for _ in 0..3 {
            flows(&receiver, 50).await;
            let signaled = Instant::now();
            leader.stop();
            let (ended, count) = (Instant::now(), receiver.count());
            let received = receiver.wait(count + 1, SOON).await;
            let gap = received[count].at - ended;
            println!("ended {:?} after SIGTERM; the other's first delivery {gap:?} after that", ended - signaled);
            // On an idle machine the bound is two seconds.
            assert!(gap < Duration::from_secs(5), "{gap:?}\n{}", standby.process.log_tail());
            leader.restart();
            leader.wait_readyz("standby", SOON).await;
            swap(&mut leader, &mut standby);
        }
        driving.await.unwrap();
        assert_eq!(all_arrive(&receiver, 300).await, 0);
    });
}
