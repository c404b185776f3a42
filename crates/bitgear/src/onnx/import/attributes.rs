//! A node's attributes. Every one must be asked for: one that nobody honours is an error.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::onnx::proto::{AttributeProto, TensorProto};

pub(super) struct Attributes<'a> {
    all: &'a [AttributeProto],
    used: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(all: &'a [AttributeProto]) -> Self {
        Self { all, used: RefCell::default() }
    }

    fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        let found = self.all.iter().find(|a| a.name == name)?;
        self.used.borrow_mut().insert(&found.name);
        Some(found)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |a| a.i)
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).map_or(default, |a| a.f)
    }

    pub(super) fn text(&self, name: &str, default: &str) -> String {
        self.get(name)
            .map_or_else(|| default.to_owned(), |a| String::from_utf8_lossy(&a.s).into_owned())
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|a| &a.ints[..])
    }

    pub(super) fn floats(&self, name: &str) -> Option<&'a [f32]> {
        self.get(name).map(|a| &a.floats[..])
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.get(name).and_then(|a| a.t.as_ref())
    }

    /// `count` sizes, all `default` where the attribute is left out.
    pub(super) fn sizes(
        &self,
        name: &str,
        count: usize,
        default: usize,
    ) -> Result<Vec<usize>, String> {
        let Some(values) = self.ints(name) else {
            return Ok(vec![default; count]);
        };
        let sizes: Option<Vec<usize>> =
            values.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v < 1 << 20)).collect();
        sizes
            .filter(|s| s.len() == count)
            .ok_or_else(|| format!("attribute `{name}` must hold {count} sizes, got {values:?}"))
    }

    /// Attributes that change nothing in inference.
    pub(super) fn ignore(&self, names: &[&str]) {
        for name in names {
            self.get(name);
        }
    }

    /// Fails where the attribute has another value than the one that is supported.
    pub(super) fn only(&self, name: &str, value: i64) -> Result<(), String> {
        match self.int(name, value) {
            got if got == value => Ok(()),
            got => Err(format!("attribute `{name}` = {got} is not supported, only {value}")),
        }
    }

    /// Fails where a zero in a new shape would not mean the size that was there. In a shape without zeros
    /// `allowzero`, which PyTorch sets always, changes nothing.
    pub(super) fn zero_keeps(&self, has_zero: bool) -> Result<(), String> {
        if has_zero {
            return self.only("allowzero", 0);
        }
        self.ignore(&["allowzero"]);
        Ok(())
    }

    pub(super) fn check_all_used(&self) -> Result<(), String> {
        let used = self.used.borrow();
        match self.all.iter().find(|a| !used.contains(a.name.as_str())) {
            None => Ok(()),
            Some(unknown) => Err(format!("attribute `{}` is not supported", unknown.name)),
        }
    }
}
