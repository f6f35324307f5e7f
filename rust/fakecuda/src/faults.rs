//! What a test wants to go wrong: errors at calls, operations that never complete, devices that are dead.

/// The rule fires at the call that brings `left` to nothing.
struct Rule {
    name: String,
    left: u64,
    code: i32,
}

#[derive(Default)]
pub struct Faults {
    faults: Vec<Rule>,
    hangs: Vec<Rule>,
    /// Devices whose communication never matches, and whether their peers get to know.
    pub dead: Vec<(usize, bool)>,
}

impl Faults {
    pub fn fault(&mut self, name: String, nth: u64, code: i32) {
        self.faults.push(Rule { name, left: nth.max(1), code });
    }

    pub fn hang(&mut self, name: String, nth: u64) {
        self.hangs.push(Rule { name, left: nth.max(1), code: 0 });
    }

    pub fn stop_hangs(&mut self) {
        self.hangs.clear();
    }

    /// Counts a call of `name`; the error it is to return.
    pub fn take(&mut self, name: &str) -> Option<i32> {
        // Destructors fail only when named: a caller can do nothing about them. "launch" is no call.
        let any = !is_destructor(name) && name != "launch";
        count(&mut self.faults, |rule| rule == name || (any && rule == "*"))
    }

    /// Counts an operation of this kind; whether it is never to complete.
    pub fn hangs(&mut self, kind: &str) -> bool {
        !self.hangs.is_empty() && count(&mut self.hangs, |rule| rule == kind).is_some()
    }

    pub fn is_dead(&self, device: usize) -> bool {
        self.dead.iter().any(|dead| dead.0 == device)
    }
}

fn count(rules: &mut Vec<Rule>, matches: impl Fn(&str) -> bool) -> Option<i32> {
    rules
        .iter_mut()
        .filter(|rule| matches(&rule.name))
        .for_each(|rule| rule.left = rule.left.saturating_sub(1));
    let at = rules.iter().position(|rule| rule.left == 0 && matches(&rule.name))?;
    Some(rules.remove(at).code)
}

fn is_destructor(name: &str) -> bool {
    const SIGNS: [&str; 7] = ["Destroy", "Free", "Release", "Abort", "Finalize", "Pop", "Trim"];
    SIGNS.iter().any(|sign| name.contains(sign))
}
