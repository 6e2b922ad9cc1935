//! A cluster of cores joined by queues in virtual time, under one seed: delays, loss, duplication, reordering, crashes that
//! lose unsynced writes, cuts, skewed clocks. Checkers watch from outside.

#![allow(clippy::unwrap_used, dead_code)]

pub mod checks;
pub mod client;
pub mod machine;
pub mod node;
pub mod operator;
pub mod sim;

/// SplitMix64: draws everything from the seed.
#[derive(Clone, Debug)]
pub struct Rnd(u64);

impl Rnd {
    pub fn new(seed: u64) -> Self {
        Rnd(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True with so many per mille.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}
