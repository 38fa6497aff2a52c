//! Which VMs this daemon looks after, by name or id. Owns the globs of `--include` and `--exclude`; never looks
//! at processes.

use globset::{Glob, GlobSet, GlobSetBuilder};

/// Chooses VMs by glob. Two daemons with opposite filters can play two hosts on one machine.
#[derive(Debug, Clone)]
pub struct NameFilter {
    /// At least one of these must match; none given means every VM.
    include: Option<GlobSet>,
    /// None of these may match.
    exclude: GlobSet,
}

/// A glob of `--include` or `--exclude` that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the VM name pattern {pattern:?} can't be used: {reason}; write a glob such as \"web-*\"")]
pub struct FilterError {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it.
    reason: globset::ErrorKind,
}

impl NameFilter {
    /// Takes every VM.
    #[must_use]
    pub fn all() -> Self {
        Self { include: None, exclude: GlobSet::empty() }
    }

    /// VMs of which the name or the id matches one of `include` (or any VM if that is empty) and none of `exclude`.
    ///
    /// # Errors
    ///
    /// If a pattern is not a glob.
    pub fn new<S: AsRef<str>>(include: &[S], exclude: &[S]) -> Result<Self, FilterError> {
        let include = if include.is_empty() { None } else { Some(compile(include)?) };
        Ok(Self { include, exclude: compile(exclude)? })
    }

    /// Whether the VM with this name and id is wanted.
    #[must_use]
    pub fn allows(&self, name: &str, id: &str) -> bool {
        let matches = |set: &GlobSet| set.is_match(name) || set.is_match(id);
        self.include.as_ref().is_none_or(matches) && !matches(&self.exclude)
    }
}

fn compile<S: AsRef<str>>(patterns: &[S]) -> Result<GlobSet, FilterError> {
    let refuse = |pattern: &str, error: &globset::Error| FilterError {
        pattern: pattern.to_owned(),
        reason: error.kind().clone(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let pattern = pattern.as_ref();
        set.add(Glob::new(pattern).map_err(|error| refuse(pattern, &error))?);
    }
    set.build().map_err(|error| refuse("", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_patterns_every_vm_is_wanted() {
        assert!(NameFilter::all().allows("web", "vm-1-2"));
        assert!(NameFilter::new::<&str>(&[], &[]).unwrap().allows("web", "vm-1-2"));
    }

    #[test]
    fn exclude_wins_over_include() {
        let filter = NameFilter::new(&["web-*", "db"], &["*-test"]).unwrap();
        assert!(filter.allows("web-1", "vm-1-2"));
        assert!(filter.allows("db", "vm-1-2"));
        assert!(!filter.allows("web-test", "vm-1-2"));
        assert!(!filter.allows("mail", "vm-1-2"));
    }

    #[test]
    fn an_id_can_be_named_instead_of_a_name() {
        let filter = NameFilter::new(&["vm-77-*"], &[]).unwrap();
        assert!(filter.allows("anything", "vm-77-123"));
        assert!(!filter.allows("anything", "vm-78-123"));
    }

    #[test]
    fn two_opposite_filters_share_out_all_vms() {
        let left = NameFilter::new(&["a*"], &[]).unwrap();
        let right = NameFilter::new(&[], &["a*"]).unwrap();
        for name in ["a", "ab", "b", "", "ä", "a/b", "..", "A"] {
            assert_ne!(left.allows(name, "vm-1-1"), right.allows(name, "vm-1-1"), "{name}");
        }
    }

    #[test]
    fn a_bad_glob_is_named_in_the_error() {
        let error = NameFilter::new(&["web-["], &[]).unwrap_err().to_string();
        assert!(error.contains("web-["), "{error}");
    }
}
