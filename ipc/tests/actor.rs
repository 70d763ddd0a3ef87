//! The actor: changes run to their end, in order, within a bound, and survive the caller and a panic.

mod common;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use common::*;
use ipc::{Actor, Code, Limits};

#[test]
fn a_mutation_survives_the_cancelled_call_that_asked_for_it() {
    run(async {
        let service = Service::new();
        let (_connection, store) = connect_pair(&service, Limits::default());
        let mut request = store.remove_request();
        request.get().set_ref("old");
        let call = request.send();
        // It has begun: the name is in the state, and the slow part is under way.
        until_begun(&service).await;
        drop(call);
        assert!(service.probe.removed.borrow().is_empty());
        eventually(|| *service.probe.removed.borrow() == ["old"]).await;
    });
}

/// Waits until a removal has begun, without asking the actor that is busy with it.
async fn until_begun(service: &Service) {
    assert!(service.probe.removed.borrow().is_empty());
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[test]
fn a_mutation_survives_the_death_of_the_peer_that_asked_for_it() {
    run(async {
        let service = Service::new();
        let (connection, store) = connect_pair(&service, Limits::default());
        let mut request = store.remove_request();
        request.get().set_ref("old");
        let call = request.send();
        until_begun(&service).await;
        drop((call, store, connection));
        eventually(|| service.probe.stores.get() == 0).await;
        eventually(|| *service.probe.removed.borrow() == ["old"]).await;
    });
}

#[test]
fn a_future_that_is_dropped_right_after_asking_still_has_its_work_done() {
    run(async {
        let actor = Actor::spawn(0, 4);
        {
            let ask = actor.ask(async |n: &mut i32| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                *n += 1;
            });
            let mut ask = Box::pin(ask);
            assert!(futures::poll!(&mut ask).is_pending());
        }
        assert_eq!(actor.ask(async |n: &mut i32| *n).await, Ok(1));
    });
}

#[test]
fn what_is_asked_and_told_runs_one_after_the_other_in_order() {
    run(async {
        let actor = Actor::spawn(Vec::new(), 100);
        let mut waiting = Vec::new();
        for i in 0..10 {
            let asking = actor.clone();
            waiting.push(tokio::task::spawn_local(async move {
                asking
                    .ask(async move |log: &mut Vec<i32>| {
                        log.push(2 * i);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        log.push(2 * i + 1);
                    })
                    .await
            }));
        }
        futures::future::join_all(waiting).await;
        actor.tell(async |log: &mut Vec<i32>| log.push(20));
        let log = actor.ask(async |log: &mut Vec<i32>| log.clone()).await.unwrap();
        assert_eq!(log, (0..21).collect::<Vec<_>>());
    });
}

#[test]
fn a_mailbox_takes_as_many_as_its_size_and_refuses_the_next_until_one_is_done() {
    run(async {
        let actor = Actor::spawn((), 2);
        let gate = Rc::new(tokio::sync::Notify::new());
        let ask = |gate: &Rc<tokio::sync::Notify>| {
            let (actor, gate) = (actor.clone(), gate.clone());
            tokio::task::spawn_local(async move { actor.ask(async move |_: &mut ()| gate.notified().await).await })
        };
        // One runs, two wait.
        let running = ask(&gate);
        settle().await;
        let waiting = (ask(&gate), ask(&gate));
        settle().await;
        assert_eq!(actor.ask(async |_: &mut ()| ()).await.unwrap_err().code, Code::Overloaded);
        // Telling has no limit.
        let told = Rc::new(Cell::new(false));
        let seen = told.clone();
        actor.tell(async move |_: &mut ()| seen.set(true));

        gate.notify_one();
        running.await.unwrap().unwrap();
        let more = ask(&gate);
        for _ in 0..3 {
            settle().await;
            gate.notify_one();
        }
        waiting.0.await.unwrap().unwrap();
        waiting.1.await.unwrap().unwrap();
        more.await.unwrap().unwrap();
        eventually(|| told.get()).await;
    });
}

#[test]
fn work_that_panics_fails_its_own_caller_and_the_next_runs() {
    run(async {
        let actor = Actor::spawn(7, 4);
        let fault =
            actor.ask(async |_: &mut i32| panic!("a test asked for this panic")).await.map(drop::<()>).unwrap_err();
        assert_eq!(fault.code, Code::Internal);
        actor.tell(async |_: &mut i32| panic!("a test asked for this panic"));
        assert_eq!(actor.ask(async |n: &mut i32| *n).await, Ok(7));
    });
}

#[test]
fn the_state_is_dropped_after_the_last_handle_and_the_last_work() {
    struct State(Rc<RefCell<Vec<&'static str>>>);
    impl Drop for State {
        fn drop(&mut self) {
            self.0.borrow_mut().push("dropped");
        }
    }
    run(async {
        let log = Rc::new(RefCell::new(Vec::new()));
        let actor = Actor::spawn(State(log.clone()), 4);
        let second = actor.clone();
        drop(actor);
        settle().await;
        assert!(log.borrow().is_empty());
        second.tell(async |state: &mut State| state.0.borrow_mut().push("told"));
        drop(second);
        eventually(|| *log.borrow() == ["told", "dropped"]).await;
    });
}
