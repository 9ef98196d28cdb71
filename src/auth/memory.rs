//! Answers that hold for a while, by a hash of what was asked; bounded.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::clock::Moment;

/// What stands for a question.
pub type Digest = [u8; 32];

/// Answers.
#[derive(Debug)]
pub struct Memory<T> {
    most: usize,
    answers: Mutex<HashMap<Digest, (Moment, T)>>,
}

impl<T: Clone> Memory<T> {
    /// An empty memory for so many answers.
    pub fn new(most: usize) -> Self {
        Self { most, answers: Mutex::default() }
    }

    /// The answer, if it still holds.
    pub fn get(&self, asked: &Digest, now: Moment) -> Option<T> {
        let answers = self.answers.lock();
        answers.get(asked).filter(|(until, _)| *until > now).map(|(_, answer)| answer.clone())
    }

    /// Keeps an answer. When there is no room those that hold no more go, else all.
    pub fn keep(&self, asked: Digest, answer: T, until: Moment, now: Moment) {
        let mut answers = self.answers.lock();
        if answers.len() >= self.most {
            answers.retain(|_, (until, _)| *until > now);
        }
        if answers.len() >= self.most {
            answers.clear();
        }
        answers.insert(asked, (until, answer));
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.answers.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_until_its_time_and_memory_is_bounded() {
        let memory = Memory::new(10);
        memory.keep([0; 32], 'a', Moment(20), Moment(10));
        assert_eq!(memory.get(&[0; 32], Moment(19)), Some('a'));
        assert_eq!(memory.get(&[0; 32], Moment(20)), None);
        assert_eq!(memory.get(&[1; 32], Moment(19)), None);
        for n in 0..100 {
            memory.keep([n; 32], 'b', Moment(20), Moment(10));
        }
        assert!(memory.answers.lock().len() <= 10);
        memory.clear();
        assert_eq!(memory.get(&[99; 32], Moment(11)), None);
    }
}
