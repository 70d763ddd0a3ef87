//! What belongs to one thread, wherever it is dropped. Touches nothing but that thread's mailbox.

use service::Owner;

/// What may only be dropped on one thread: dropped elsewhere, it is sent there.
pub struct DroppedOn<T: Send + 'static, S: 'static> {
    value: Option<T>,
    home: Owner<S>,
}

impl<T: Send, S> DroppedOn<T, S> {
    /// A value that belongs to the thread of `home`.
    pub fn new(value: T, home: Owner<S>) -> DroppedOn<T, S> {
        DroppedOn { value: Some(value), home }
    }

    /// The value.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.value.as_mut()
    }

    /// Another value made of it, with the same home.
    pub fn map<U: Send>(mut self, f: impl FnOnce(T) -> U) -> DroppedOn<U, S> {
        DroppedOn { value: self.value.take().map(f), home: self.home.clone() }
    }

    /// The value, for good.
    pub fn take(mut self) -> Option<T> {
        self.value.take()
    }
}

impl<T: Send, S> Drop for DroppedOn<T, S> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.home.tell(move |_| drop(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Scratch;

    #[test]
    fn what_belongs_to_a_thread_is_dropped_there() {
        struct Where(std::sync::mpsc::Sender<std::thread::ThreadId>);
        impl Drop for Where {
            fn drop(&mut self) {
                let _ = self.0.send(std::thread::current().id());
            }
        }
        let (owner, inbox) = service::owner::<Scratch>();
        let thread = std::thread::spawn(move || inbox.run(Scratch::new()));
        let (sender, dropped) = std::sync::mpsc::channel();
        drop(DroppedOn::new(Where(sender), owner.clone()));
        assert_eq!(dropped.recv().unwrap(), thread.thread().id());
        drop(owner);
        thread.join().unwrap().unwrap();
    }
}
