//! 64 KiB buffers that are held only while they have bytes in them: an idle connection owns none. Each worker thread
//! keeps a few free ones.

use std::cell::RefCell;

/// Size of a buffer. Four bytes less than this fill four TLS records together with a frame header.
pub(super) const BUF_BYTES: usize = 64 * 1024;
const MAX_FREE: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that is filled at its end and consumed from its front; goes back to the thread's free list on drop.
#[derive(Debug)]
pub(super) struct Buf {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buf {
    /// An empty buffer.
    pub(super) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        let data = free.unwrap_or_else(|| vec![0; BUF_BYTES].into_boxed_slice());
        Self { data, start: 0, end: 0 }
    }

    /// What is held.
    pub(super) fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room behind what is held.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        &mut self.data[self.end..]
    }

    /// Says that `n` bytes of [`Buf::spare`] were filled.
    pub(super) fn commit(&mut self, n: usize) {
        self.end = (self.end + n).min(self.data.len());
    }

    /// Drops `n` bytes from the front.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Copies as much of `bytes` as there is room for; says how much.
    pub(super) fn append(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare();
        let n = spare.len().min(bytes.len());
        spare[..n].copy_from_slice(&bytes[..n]);
        self.commit(n);
        n
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        FREE.with_borrow_mut(|free| {
            if free.len() < MAX_FREE {
                free.push(data);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_room_returns() {
        let mut buf = Buf::take();
        assert_eq!(buf.append(b"hello"), 5);
        buf.consume(2);
        assert_eq!(buf.filled(), b"llo");
        buf.consume(3);
        assert!(buf.is_empty());
        assert_eq!(buf.spare().len(), BUF_BYTES);
        assert_eq!(buf.append(&vec![1; BUF_BYTES + 1]), BUF_BYTES);
        assert!(buf.spare().is_empty());
    }
}
