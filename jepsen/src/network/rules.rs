//! Which packets between nodes are dropped, as a script for `nft`. Pure.
//!
//! Each nemesis has its own part, so that several at once do not undo each other's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// From node, to node, counted from 0: one direction.
pub type Pair = (usize, usize);

/// What is wrong in a network.
#[derive(Debug, Default)]
pub struct Faults {
    blocked: BTreeMap<&'static str, Vec<Pair>>,
    lossy: BTreeMap<&'static str, (u8, Vec<Pair>)>,
}

impl Faults {
    /// Drops all of these pairs; replaces what `who` had.
    pub fn block(&mut self, who: &'static str, pairs: Vec<Pair>) {
        self.blocked.insert(who, pairs);
    }

    /// Drops a share of these pairs; replaces what `who` had.
    pub fn lose(&mut self, who: &'static str, percent: u8, pairs: Vec<Pair>) {
        self.lossy.insert(who, (percent.min(100), pairs));
    }

    /// Takes back what `who` did.
    pub fn clear(&mut self, who: &'static str) {
        self.blocked.remove(who);
        self.lossy.remove(who);
    }

    /// The whole table anew; `nft` puts it in place in one step.
    #[must_use]
    pub fn script(&self, net: u8) -> String {
        let table = table(net);
        // Made first, so that there is one to delete.
        let mut text =
            format!("table bridge {table}\ndelete table bridge {table}\ntable bridge {table} {{\n");
        text.push_str("  chain forward {\n    type filter hook forward priority 0; policy accept;\n");
        let mut rule = |(from, to): &Pair, when: &str| {
            let (from, to) = (port(net, *from), port(net, *to));
            // Writing to a string can't fail.
            let _ = writeln!(text, "    iifname \"{from}\" oifname \"{to}\" ether type ip {when}drop");
        };
        for pair in self.blocked.values().flatten() {
            rule(pair, "");
        }
        for (percent, pairs) in self.lossy.values() {
            let when = format!("numgen random mod 100 < {percent} ");
            pairs.iter().for_each(|pair| rule(pair, &when));
        }
        text.push_str("  }\n}\n");
        text
    }
}

/// The table's name.
#[must_use]
pub fn table(net: u8) -> String {
    format!("quoral{net}")
}

/// The bridge's port of a node.
#[must_use]
pub fn port(net: u8, node: usize) -> String {
    format!("c{net}n{}", node + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_part() {
        let mut faults = Faults::default();
        faults.block("partition", vec![(0, 1)]);
        faults.lose("loss", 30, vec![(1, 0)]);
        let both = faults.script(7);
        assert!(both.contains("iifname \"c7n1\" oifname \"c7n2\" ether type ip drop\n"), "{both}");
        assert!(
            both.contains(
                "iifname \"c7n2\" oifname \"c7n1\" ether type ip numgen random mod 100 < 30 drop\n"
            )
        );
        faults.clear("partition");
        assert_eq!(faults.script(7).matches("drop").count(), 1);
        faults.clear("loss");
        assert_eq!(faults.script(7).matches("drop").count(), 0);
    }
}
