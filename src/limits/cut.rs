//! Connections that are ended without an answer, and why.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a connection was ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// As many are open as may be.
    Connections,
    /// Its client has as many as it may have.
    ClientConnections,
    /// Its client opens them too fast.
    ConnectionRate,
    /// It opened with no PROXY header that counts.
    ProxyHeader,
    /// Its client does not take its answer.
    SlowReader,
}

impl Cut {
    /// Every reason, in the order of the enum.
    pub const ALL: [Self; Self::SlowReader as usize + 1] = [
        Self::Connections,
        Self::ClientConnections,
        Self::ConnectionRate,
        Self::ProxyHeader,
        Self::SlowReader,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ClientConnections => "client_connections",
            Self::ConnectionRate => "connection_rate",
            Self::ProxyHeader => "proxy_header",
            Self::SlowReader => "slow_reader",
        }
    }
}

/// How many were cut, by why.
#[derive(Debug)]
pub struct Cuts([AtomicU64; Cut::ALL.len()]);

impl Default for Cuts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Cuts {
    /// Another one.
    pub fn count(&self, cut: Cut) {
        if let Some(count) = self.0.get(cut as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// So many so far, for each reason.
    pub fn counts(&self) -> impl Iterator<Item = (Cut, u64)> + '_ {
        Cut::ALL.into_iter().zip(&self.0).map(|(cut, count)| (cut, count.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cut_is_counted_under_its_own_name() {
        let cuts = Cuts::default();
        for (place, cut) in Cut::ALL.into_iter().enumerate() {
            assert_eq!(cut as usize, place, "{cut:?}");
            for _ in 0..=place {
                cuts.count(cut);
            }
        }
        let counts: Vec<u64> = cuts.counts().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 2, 3, 4, 5]);
    }
}
