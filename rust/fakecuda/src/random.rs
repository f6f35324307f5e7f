//! A small generator for the order of streams and their delays. Not for anything that must be reproducible
//! to the byte: real threads take part.

#[derive(Default)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// splitmix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// What a worker does before an operation: usually nothing, at times a yield, now and then a sleep of up
    /// to `most_us` microseconds.
    pub fn delay(&mut self, most_us: u64) -> Delay {
        if most_us == 0 {
            return Delay::None;
        }
        match self.next() % 16 {
            0 => Delay::Sleep(self.next() % most_us + 1),
            1..=3 => Delay::Yield,
            4..=5 => Delay::Spin,
            _ => Delay::None,
        }
    }
}

pub enum Delay {
    None,
    Yield,
    Spin,
    Sleep(u64),
}

impl Delay {
    pub fn pass(self) {
        match self {
            Self::None => {}
            Self::Yield => std::thread::yield_now(),
            Self::Spin => (0..500).for_each(|_| std::hint::spin_loop()),
            Self::Sleep(us) => std::thread::sleep(std::time::Duration::from_micros(us)),
        }
    }
}
