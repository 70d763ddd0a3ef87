//! Tests of the thread: jobs, work in steps, what can wait, whose turn it is, and what becomes of the state after a panic.

use super::*;

use std::{
    convert::Infallible as Never,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use futures::{join, poll};
use ipc::Peer;

const LONG: Duration = Duration::from_secs(3600);

/// What jobs have noted. A hundred of a number is left for later, in pieces.
#[derive(Default)]
struct Notes {
    said: String,
    numbers: Vec<u32>,
    due: Option<Instant>,
    /// How often it was made anew; at the third time it cannot be.
    anew: usize,
}

impl State for Notes {
    fn renew(&mut self) -> Result<(), Lost> {
        *self = Notes { anew: self.anew + 1, ..Notes::default() };
        if self.anew < 3 { Ok(()) } else { Err("it has no copy left".into()) }
    }

    fn tidy(&mut self) -> Result<bool, Lost> {
        if self.due.take().is_some() {
            self.said.push('d');
        }
        let left = self.numbers.iter_mut().find(|n| **n >= 100);
        match left {
            Some(13_000..) => panic!("on purpose"),
            Some(7_000..) => Err("it is lost".into()),
            left => Ok(left.map(|n| *n -= 100).is_some()),
        }
    }

    fn due(&self) -> Option<Instant> {
        self.due
    }
}

fn start() -> (Owner<Notes>, JoinHandle<Result<(), Lost>>) {
    let (owner, inbox) = owner();
    (owner, thread::spawn(move || inbox.run(Notes::default())))
}

/// Runs the thread for a test that asks it things, to its end.
fn with_thread(test: impl AsyncFnOnce(Owner<Notes>)) {
    let (owner, thread) = start();
    block_on(test(owner));
    thread.join().unwrap().unwrap();
}

fn block_on<T>(f: impl Future<Output = T>) -> T {
    ipc::run(f).unwrap()
}

fn client(pid: i32) -> Peer {
    Peer { pid, ..Peer::this_process() }
}

/// How many numbers there are, with one more.
fn count(state: &mut Notes) -> Result<usize, Fault> {
    state.numbers.push(1);
    Ok(state.numbers.len())
}

/// Notes `name` at each of `steps` steps.
fn steps(name: char, mut steps: usize) -> impl FnMut(&mut Notes) -> Result<Option<()>, Never> + Send {
    move |state| {
        state.said.push(name);
        steps -= 1;
        Ok((steps == 0).then_some(()))
    }
}

#[test]
fn job_of_a_cancelled_call_runs_and_its_answer_is_dropped() {
    struct Made(Arc<AtomicBool>);
    impl Drop for Made {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    with_thread(async |owner| {
        let released = Arc::new(AtomicBool::new(false));
        let made = Made(released.clone());
        let (go, gone) = mpsc::channel();
        let call = owner.ask(move |state| {
            let _ = gone.recv();
            state.numbers.push(1);
            Ok::<_, Fault>(made)
        });
        assert!(timeout(Duration::from_millis(5), call).await.is_err());
        assert!(!released.load(Ordering::Relaxed));
        go.send(()).unwrap();
        assert_eq!(owner.ask(count).await, Ok(2));
        assert!(released.load(Ordering::Relaxed));
    });
}

#[test]
fn work_of_a_cancelled_call_is_not_begun() {
    let (owner, inbox) = owner::<Notes>();
    block_on(async {
        let mut left = Box::pin(owner.work(LONG, steps('x', 1)));
        assert!(poll!(&mut left).is_pending());
        drop(left);
        let thread = thread::spawn(move || inbox.run(Notes::default()));
        owner.work(LONG, steps('a', 1)).await.unwrap();
        assert_eq!(owner.ask(|state| Ok::<_, Fault>(state.said.clone())).await.unwrap(), "a");
        drop(owner);
        thread.join().unwrap().unwrap();
    });
}

#[test]
fn call_whose_job_hangs_ends_by_the_deadline() {
    with_thread(async |mut owner| {
        owner.deadline = Some(Duration::from_millis(20));
        let (go, gone) = mpsc::channel();
        let hanging = move |_: &mut Notes| {
            let _ = gone.recv();
            Ok::<_, Fault>(())
        };
        assert_eq!(owner.ask(hanging).await.unwrap_err().code, Code::Unavailable);
        go.send(()).unwrap();
    });
}

#[test]
fn calls_of_a_client_past_its_limit_are_refused_and_others_and_what_is_told_are_not() {
    let (owner, inbox) = owner::<Notes>();
    block_on(async {
        let room = Notes::ROOM.per_client;
        let mut calls: Vec<_> = (0..room).map(|_| Box::pin(owner.ask(count))).collect();
        for call in &mut calls {
            assert!(poll!(call).is_pending());
        }
        assert_eq!(owner.ask(count).await.unwrap_err().code, Code::Overloaded);
        assert!(matches!(owner.work(LONG, steps('x', 1)).await, Err(Stopped::Refused(_))));
        owner.tell(|state| state.numbers.push(2));
        let of_other = owner.of(client(1));
        let mut other = Box::pin(of_other.ask(count));
        assert!(poll!(&mut other).is_pending());
        let thread = thread::spawn(move || inbox.run(Notes::default()));
        // Behind what was told and one call of the client that has filled its room.
        assert_eq!(other.await, Ok(3));
        for call in calls {
            call.await.unwrap();
        }
        assert_eq!(owner.ask(count).await, Ok(room + 3));
        drop((owner, of_other));
        thread.join().unwrap().unwrap();
    });
}

#[test]
fn what_can_wait_is_behind_jobs_and_is_done_in_pieces_between_many() {
    let (owner, inbox) = owner::<Notes>();
    block_on(async {
        // Three pieces, and then what they have left when each of many jobs is done.
        owner.tell(|state| state.numbers.push(300));
        let seen = |state: &mut Notes| Ok::<_, Fault>(state.numbers[0]);
        let mut calls: Vec<_> = (0..3 * Notes::JOBS).map(|_| Box::pin(owner.ask(seen))).collect();
        for call in &mut calls {
            assert!(poll!(call).is_pending());
        }
        let thread = thread::spawn(move || inbox.run(Notes::default()));
        let mut all = Vec::new();
        for call in calls {
            all.push(call.await.unwrap());
        }
        assert_eq!(all, [300, 200, 100].map(|left| vec![left; Notes::JOBS]).concat());
        drop(owner);
        thread.join().unwrap().unwrap();
    });
}

#[test]
fn what_can_wait_is_done_before_the_thread_ends() {
    struct Left(Arc<AtomicUsize>);
    impl State for Left {
        fn renew(&mut self) -> Result<(), Lost> {
            Err("it has nothing else".into())
        }

        fn tidy(&mut self) -> Result<bool, Lost> {
            Ok(self.0.fetch_sub(1, Ordering::Relaxed) > 1)
        }
    }
    let (owner, inbox) = owner::<Left>();
    owner.tell(|left| left.0.store(5, Ordering::Relaxed));
    drop(owner);
    let left = Arc::default();
    inbox.run(Left(Arc::clone(&left))).unwrap();
    assert_eq!(left.load(Ordering::Relaxed), 0);
}

#[test]
fn what_is_told_is_done_in_its_order_and_before_what_is_asked_after_it() {
    for asked in [false, true] {
        let (owner, inbox) = owner::<Notes>();
        let said = Arc::new(Mutex::new(String::new()));
        let say = |name: char| {
            let said = said.clone();
            move |_: &mut Notes| said.lock().unwrap().push(name)
        };
        ['a', 'b', 'c'].into_iter().for_each(|name| owner.tell(say(name)));
        block_on(async {
            let ask = say('J');
            let mut job = Box::pin(owner.ask(move |state| {
                ask(state);
                Ok::<_, Fault>(())
            }));
            assert!(!asked || poll!(&mut job).is_pending());
        });
        drop(owner);
        inbox.run(Notes::default()).unwrap();
        assert_eq!(*said.lock().unwrap(), if asked { "abcJ" } else { "abc" });
    }
}

#[test]
fn what_is_due_is_done_although_nobody_asks_for_anything() {
    with_thread(async |owner| {
        owner.tell(|state| state.due = Some(Instant::now() + Duration::from_millis(10)));
        let said = async || owner.ask(|state| Ok::<_, Fault>(state.said.clone())).await.unwrap();
        while said().await != "d" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn clients_and_what_each_asks_for_have_a_step_in_turn_and_a_job_goes_in_front_of_the_next() {
    let (owner, inbox) = owner::<Notes>();
    block_on(async {
        let (ours, theirs) = (owner.of(client(1)), owner.of(client(2)));
        let all = async {
            let first = ours.work(LONG, steps('a', 4));
            let second = ours.work(LONG, steps('b', 2));
            let other = theirs.work(LONG, steps('x', 2));
            let job = theirs.ask(|state| {
                state.said.push('J');
                Ok::<_, Fault>(())
            });
            join!(first, second, other, job)
        };
        let mut all = Box::pin(all);
        assert!(poll!(&mut all).is_pending());
        // By hand, to see the order.
        let (mut state, mut turns) = (Notes::default(), Turns::new());
        while let Some(message) = inbox.0.receive_now() {
            match message {
                Message::Told(job) | Message::Asked(job) => job(&mut state),
                Message::Work(client, steps) => turns.add(client, steps),
            }
        }
        while !turns.is_empty() {
            turns.step(|steps| steps(&mut state));
        }
        let done = all.await;
        assert!(done.0.is_ok() && done.1.is_ok() && done.2.is_ok() && done.3.is_ok());
        assert_eq!(state.said, "Jaxbxabaa");
    });
}

#[test]
fn a_user_with_many_processes_and_connections_has_no_more_steps_than_another() {
    let peer = |uid, pid, connection| Peer { uid, pid, connection, ..Peer::this_process() };
    let mut turns = Turns::new();
    let mut add = |peer: Peer, name: char, mut left: usize| {
        let steps = move |state: &mut String| {
            state.push(name);
            left -= 1;
            left == 0
        };
        turns.add(peer.into(), Box::new(steps));
    };
    for (pid, link, name) in [(1, 1, 'a'), (1, 2, 'b'), (2, 3, 'c')] {
        add(peer(1000, pid, link), name, 2);
    }
    add(peer(0, 3, 9), 'x', 4);
    let mut state = String::new();
    while !turns.is_empty() {
        turns.step(|steps| steps(&mut state));
    }
    // The two connections of one process share its steps.
    assert_eq!(state, "axcxbxcxab");
}

#[test]
fn work_without_end_lets_jobs_and_others_work_pass_and_ends_with_its_caller() {
    with_thread(async |owner| {
        let endless = owner.work(LONG, |_| Ok::<Option<()>, Never>(None));
        let mut endless = Box::pin(endless);
        let other = owner.of(client(2));
        assert!(poll!(&mut endless).is_pending());
        for _ in 0..3 {
            other.work(LONG, steps('x', 3)).await.unwrap();
            other.ask(count).await.unwrap();
        }
        assert!(poll!(&mut endless).is_pending());
        // Then its caller has gone, and so have all handles: the thread has nothing left to do.
    });
}

#[test]
fn work_that_takes_more_time_than_it_may_is_stopped() {
    with_thread(async |owner| {
        let endless = |_: &mut Notes| Ok::<Option<()>, Never>(None);
        assert_eq!(owner.work(Duration::from_millis(5), endless).await, Err(Stopped::Late));
    });
}

#[test]
fn parts_of_work_have_one_allowance_together() {
    with_thread(async |owner| {
        let of = |all: Duration| {
            let allowance = Allowance::from(all);
            let parts = [allowance.clone(), allowance];
            async {
                let [first, second] = parts;
                // It is done in its one step, however long that was.
                let slow = |_: &mut Notes| {
                    thread::sleep(Duration::from_millis(2));
                    Ok::<_, Never>(Some(()))
                };
                (owner.work(first, slow).await, owner.work(second, steps('x', 2)).await)
            }
        };
        assert_eq!(of(Duration::from_millis(1)).await, (Ok(()), Err(Stopped::Late)));
        assert_eq!(of(LONG).await, (Ok(()), Ok(())));
    });
}

#[test]
fn a_panic_fails_its_own_caller_and_the_state_is_made_anew_before_the_next() {
    with_thread(async |owner| {
        let anew = async || owner.ask(|state| Ok::<_, Fault>((state.anew, state.numbers.len()))).await;
        owner.ask(count).await.unwrap();
        let job = owner.ask(|state| -> Result<(), Fault> {
            state.numbers.push(1);
            panic!("on purpose")
        });
        assert_eq!(job.await.unwrap_err().code, Code::Internal);
        assert_eq!(anew().await, Ok((1, 0)));
        owner.ask(count).await.unwrap();
        let work = owner.work(LONG, |_| -> Result<Option<()>, Never> { panic!("on purpose") });
        assert_eq!(work.await, Err(Stopped::Panicked));
        assert_eq!(anew().await, Ok((2, 0)));
    });
    with_thread(async |owner| {
        owner.tell(|_| panic!("on purpose"));
        // Tidying takes its time, and then panics.
        owner.tell(|state| state.numbers.push(13_000));
        while owner.ask(|state| Ok::<_, Fault>(state.anew)).await != Ok(2) {}
    });
}

#[test]
fn others_work_goes_on_with_the_new_state_after_a_panic() {
    let (owner, inbox) = owner::<Notes>();
    block_on(async {
        let other = owner.of(client(2));
        let mut work = Box::pin(other.work(LONG, steps('x', 3)));
        let mut panics = Box::pin(owner.work(LONG, |_| -> Result<Option<()>, Never> { panic!("on purpose") }));
        assert!(poll!(&mut work).is_pending() && poll!(&mut panics).is_pending());
        let thread = thread::spawn(move || inbox.run(Notes::default()));
        assert_eq!(join!(work, panics), (Ok(()), Err(Stopped::Panicked)));
        drop((owner, other));
        thread.join().unwrap().unwrap();
    });
}

#[test]
fn a_thread_whose_state_cannot_be_made_anew_or_is_lost_ends_and_says_why_and_all_that_waits_is_told() {
    let panics = |_: &mut Notes| -> Result<(), Fault> { panic!("on purpose") };
    let (owner, thread) = start();
    block_on(async {
        for _ in 0..3 {
            owner.ask(panics).await.unwrap_err();
        }
        assert_eq!(owner.ask(count).await.unwrap_err().code, Code::Internal);
    });
    assert_eq!(thread.join().unwrap().unwrap_err().to_string(), "it has no copy left");
    let (owner, thread) = start();
    owner.tell(|state| state.numbers.push(7_000));
    assert_eq!(thread.join().unwrap().unwrap_err().to_string(), "it is lost");
    assert_eq!(block_on(owner.ask(count)).unwrap_err().code, Code::Internal);
}
