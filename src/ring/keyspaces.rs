//! Changes of the keyspaces: one pure function from the map there is to the map to propose.
//!
//! A change is tried on the newest map again and again until one version with it is decided. What must not
//! happen on the way is that it hits another keyspace than the one that was meant, or is made twice. So an
//! [`Edit`] remembers which keyspace it met first, and whether a map with its change may have been decided
//! unseen.
//!
//! Invariants:
//! 1. An update or a drop is about the keyspace that had the name when it began, never about a later one of
//!    the same name.
//! 2. The id of a keyspace never changes and is never given again: a new keyspace takes the map's next id, which
//!    only grows, drops or not.
//! 3. With a version to build on, nothing is proposed on any other map.
//! 4. What may have been decided unseen is not proposed a second time, unless the map shows that it was not.

use super::layout::{ClusterMap, DEFAULT_KEYSPACE, KeyspaceError, NewKeyspace};
use crate::types::error::Invalid;
use crate::types::ids::{KeyspaceId, MapVersion};
use crate::types::policy::Keyspace;

/// What of a keyspace's policy becomes something else; what is none stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyspaceUpdate {
    /// Answers that a get waits for.
    pub r: Option<u8>,
    /// Acknowledgements that a put waits for.
    pub w: Option<u8>,
    /// Whether fallbacks may stand in.
    pub sloppy: Option<bool>,
    /// Milliseconds that a version lives; the inner none is for ever.
    pub ttl_ms: Option<Option<u64>>,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyspaceChange {
    /// A new keyspace.
    Create(NewKeyspace),
    /// Another policy for the keyspace of this name.
    Update(String, KeyspaceUpdate),
    /// The keyspace of this name goes, with all that is in it.
    Drop(String),
}

/// What comes next of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// This map is to be proposed; with it the keyspace is (or, dropped, was) this.
    Propose(ClusterMap, Keyspace),
    /// Nothing is left to do, as of this version.
    Done(Keyspace, MapVersion),
}

/// A change on its way into the cluster map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    change: KeyspaceChange,
    if_version: Option<MapVersion>,
    /// The keyspace that an update or a drop is about.
    target: Option<Keyspace>,
    /// The keyspace of a proposal that may have been decided unseen.
    doubt: Option<Keyspace>,
}

impl Edit {
    /// A change of the newest map; with `if_version`, of this one only.
    pub fn new(change: KeyspaceChange, if_version: Option<MapVersion>) -> Edit {
        Edit { change, if_version, target: None, doubt: None }
    }

    /// What to do about `map`, the newest.
    pub fn next(&mut self, map: &ClusterMap) -> Result<Next, KeyspaceError> {
        if let Some(wanted) = self.if_version
            && wanted != map.version
        {
            let moved = KeyspaceError::Moved { wanted, now: map.version };
            return Err(if self.doubt.is_some() { KeyspaceError::InDoubt } else { moved });
        }
        match self.change.clone() {
            KeyspaceChange::Create(spec) => self.create(map, spec),
            KeyspaceChange::Update(name, update) => self.update(map, &name, &update),
            KeyspaceChange::Drop(name) => self.drop(map, &name),
        }
    }

    /// The proposal that was `made` of the last map may or may not be in one that was decided meanwhile.
    pub fn is_in_doubt(&mut self, made: Keyspace) {
        self.doubt = Some(made);
    }

    /// Whether the change may have been made, if it is given up now.
    pub fn may_be_made(&self) -> bool {
        self.doubt.is_some()
    }

    fn create(&self, map: &ClusterMap, spec: NewKeyspace) -> Result<Next, KeyspaceError> {
        if let Some(made) = &self.doubt
            && map.next_keyspace > made.id
        {
            // The id is given: to the own keyspace, perhaps changed or dropped since, or to another.
            let is_like = |found: &Keyspace| {
                (&found.name, found.conflicts, found.n) == (&made.name, made.conflicts, made.n)
            };
            if map.keyspace_by_id(made.id).is_none_or(is_like) {
                return Err(KeyspaceError::InDoubt);
            }
        }
        let name = spec.name.clone();
        let next = map.with_keyspace(spec)?;
        let made = next.keyspace(&name).cloned().ok_or(KeyspaceError::Unknown(name))?;
        Ok(Next::Propose(next, made))
    }

    /// Invariant 1: the keyspace that is meant, as it is now; none if it is gone, and another has its name or not.
    fn meant(&mut self, map: &ClusterMap, name: &str) -> Result<Option<Keyspace>, KeyspaceError> {
        match (&self.target, map.keyspace(name)) {
            (None, None) => Err(KeyspaceError::Unknown(name.to_owned())),
            (None, Some(found)) => {
                self.target = Some(found.clone());
                Ok(Some(found.clone()))
            }
            (Some(target), found) => Ok(found.filter(|found| found.id == target.id).cloned()),
        }
    }

    fn gone(map: &ClusterMap, name: &str) -> KeyspaceError {
        match map.keyspace(name) {
            Some(_) => KeyspaceError::Replaced(name.to_owned()),
            None => KeyspaceError::Unknown(name.to_owned()),
        }
    }

    fn update(
        &mut self,
        map: &ClusterMap,
        name: &str,
        update: &KeyspaceUpdate,
    ) -> Result<Next, KeyspaceError> {
        let Some(old) = self.meant(map, name)? else { return Err(Edit::gone(map, name)) };
        let new = Keyspace {
            r: update.r.unwrap_or(old.r),
            w: update.w.unwrap_or(old.w),
            sloppy: update.sloppy.unwrap_or(old.sloppy),
            ttl_ms: update.ttl_ms.unwrap_or(old.ttl_ms),
            ..old.clone()
        };
        new.validate(map.layout.members.len())?;
        if new == old {
            return Ok(Next::Done(old, map.version));
        }
        if self.doubt.is_some() {
            return Err(KeyspaceError::InDoubt);
        }
        let mut next = map.next_version()?;
        next.keyspaces.iter_mut().filter(|keyspace| keyspace.id == new.id).for_each(|k| *k = new.clone());
        Ok(Next::Propose(next, new))
    }

    fn drop(&mut self, map: &ClusterMap, name: &str) -> Result<Next, KeyspaceError> {
        if name == DEFAULT_KEYSPACE {
            let problem =
                format!("{name:?} can't be dropped: it is what requests without a keyspace are about");
            return Err(Invalid::new("name", problem).into());
        }
        let Some(old) = self.meant(map, name)? else {
            // Dropped, by this proposal or by another: it is gone as was asked for.
            return match self.doubt.take() {
                Some(dropped) => Ok(Next::Done(dropped, map.version)),
                None => Err(Edit::gone(map, name)),
            };
        };
        // It is still there, so a proposal in doubt was not decided.
        let mut next = map.next_version()?;
        next.keyspaces.retain(|keyspace| keyspace.id != old.id);
        Ok(Next::Propose(next, old))
    }
}

impl ClusterMap {
    /// How many keyspaces were ever dropped.
    pub fn dropped(&self) -> usize {
        let given = usize::try_from(self.next_keyspace.0).unwrap_or(usize::MAX).saturating_sub(1);
        given.saturating_sub(self.keyspaces.len())
    }

    /// Whether a keyspace was dropped: its id was given, and is not in the map. One that is above the next id is
    /// of a newer map, and not known here.
    pub fn has_dropped(&self, id: KeyspaceId) -> bool {
        id < self.next_keyspace && self.keyspace_by_id(id).is_none()
    }

    /// This map as the next version, with nothing changed yet.
    fn next_version(&self) -> Result<ClusterMap, Invalid> {
        let used_up = || Invalid::new("map.version", "all cluster map versions are used up");
        let version = MapVersion(self.version.0.checked_add(1).ok_or_else(used_up)?);
        Ok(ClusterMap { version, ..self.clone() })
    }
}

#[cfg(test)]
#[path = "keyspaces_tests.rs"]
mod tests;
