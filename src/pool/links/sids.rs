//! The sids under which the gateway listens.

use crate::pool::events::Flavour;

/// The gateway's own sids, the same at every backend and after a restart, so that the events of
/// prompts that run on meanwhile flow again. One process at a time may use them: `ComfyUI` knows one
/// socket per sid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sids {
    /// Tells this gateway from others that share its backends. Nobody else may learn it: whoever
    /// knows a sid can take its events away.
    pub base: String,
}

impl Sids {
    /// The sid of a socket; prompts whose events shall come on it are posted under it.
    pub fn of(&self, flavour: Flavour) -> String {
        match flavour {
            Flavour::Plain => format!("comfygate-{}", self.base),
            Flavour::Flags => format!("comfygate-{}-flags", self.base),
        }
    }

    /// Which of the sockets a sid names, if it is one of ours. A client must not get it.
    pub fn flavour(&self, sid: &str) -> Option<Flavour> {
        Flavour::ALL.into_iter().find(|&flavour| self.of(flavour) == sid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sid_tells_its_socket() {
        let sids = Sids { base: "x".into() };
        assert_eq!(sids.of(Flavour::Plain), "comfygate-x");
        assert_eq!(sids.of(Flavour::Flags), "comfygate-x-flags");
        for flavour in Flavour::ALL {
            assert_eq!(sids.flavour(&sids.of(flavour)), Some(flavour));
        }
        assert_eq!(sids.flavour("x"), None);
    }
}
