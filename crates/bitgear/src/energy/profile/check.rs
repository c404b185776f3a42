//! What a profile must not contradict.

use super::AcceleratorProfile;
use crate::energy::schema::{MacTable, Memory, Quantity, Style, TransitionKind, VoltageTransition};

impl AcceleratorProfile {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.modes.is_empty() == self.mac_table.is_none() {
            return Err(
                "expected either `[[mode]]` or `[mac_table]`, exactly one of them".to_owned()
            );
        }
        self.check_scope()?;
        self.check_names()?;
        self.check_ranges()?;
        for mode in &self.modes {
            check_widths(&format!("mode `{}`", mode.id), &[mode.w_bits, mode.a_bits])?;
            self.check_supply(&format!("mode `{}`", mode.id), mode.supply_point.as_deref())?;
        }
        if let Some(table) = &self.mac_table {
            self.check_table(table)?;
        }
        let needed = match self.matching.voltage_transition {
            VoltageTransition::Onchip => Some(TransitionKind::VoltageOnchip),
            VoltageTransition::Offchip => Some(TransitionKind::VoltageOffchip),
            VoltageTransition::None => None,
        };
        match needed {
            Some(kind) if !self.transitions.iter().any(|t| t.kind == kind) => Err(format!(
                "`voltage_transition` names {kind:?}, but no `[[transition]]` gives its cost"
            )),
            _ => Ok(()),
        }
    }

    /// Nothing is named twice, so that nothing is read in vain.
    fn check_names(&self) -> Result<(), String> {
        let kinds = self.transitions.iter().map(|t| format!("{:?}", t.kind));
        let lists: [(&str, Vec<String>); 4] = [
            ("mode", self.modes.iter().map(|m| m.id.clone()).collect()),
            ("supply_point", self.supply_points.iter().map(|s| s.id.clone()).collect()),
            ("memory", self.memories.iter().map(|m| m.name.clone()).collect()),
            ("transition", kinds.collect()),
        ];
        for (block, names) in lists {
            let twice = (1..names.len()).find(|&i| names[..i].contains(&names[i]));
            if let Some(index) = twice {
                return Err(format!("`[[{block}]]`: `{}` occurs twice", names[index]));
            }
        }
        let offchip: Vec<&str> =
            self.memories.iter().filter(|m| m.is_offchip()).map(|m| m.name.as_str()).collect();
        if offchip.len() > 1 {
            return Err(format!(
                "memories {offchip:?} have no `size_bytes`: expected one memory off chip at most"
            ));
        }
        if self.mac_table.is_some() && self.matching.gating_exponent != 0.0 {
            return Err(
                "`matching.gating_exponent` works inside modes: expected `[[mode]]`, got `[mac_table]`"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn check_supply(&self, place: &str, supply: Option<&str>) -> Result<(), String> {
        match supply {
            Some(id) if !self.supply_points.iter().any(|s| s.id == id) => {
                Err(format!("{place}: no supply point `{id}`"))
            }
            _ => Ok(()),
        }
    }

    fn check_table(&self, table: &MacTable) -> Result<(), String> {
        check_widths("`mac_table.a_bits`", &table.a_bits)?;
        check_widths("`mac_table.w_bits`", &table.w_bits)?;
        for (name, bits) in [("a_bits", &table.a_bits), ("w_bits", &table.w_bits)] {
            if bits.is_empty() || !bits.is_sorted_by(|a, b| a < b) {
                return Err(format!("`mac_table.{name}` must rise, got {bits:?}"));
            }
        }
        let (rows, columns) = (table.a_bits.len(), table.w_bits.len());
        let shapes = [
            ("e_mac_pj", Some(shape(&table.e_mac_pj))),
            ("macs_per_cycle", table.macs_per_cycle.as_deref().map(shape)),
            ("grade_per_point", table.grade_per_point.as_deref().map(shape)),
        ];
        for (name, shape) in shapes {
            if shape.is_some_and(|lengths| lengths != vec![columns; rows]) {
                return Err(format!(
                    "`mac_table.{name}` must have {rows} rows of {columns} entries"
                ));
            }
        }
        let rates = table.macs_per_cycle.iter().flatten().flatten();
        for (name, values) in
            [("e_mac_pj", table.e_mac_pj.concat()), ("macs_per_cycle", rates.copied().collect())]
        {
            values.iter().try_for_each(|&v| positive(&format!("mac_table.{name}"), v))?;
        }
        self.check_supply("`mac_table`", table.supply_point.as_deref())
    }

    /// Every number that is known lies where such a number can lie, and within its own bounds.
    fn check_ranges(&self) -> Result<(), String> {
        let least = |name: String, value: Option<Quantity>| match value.and_then(Quantity::known) {
            Some(v) if !(v >= 0.0 && v.is_finite()) => {
                Err(format!("`{name}` must not be negative, got {v}"))
            }
            _ => Ok(()),
        };
        let more = |name: String, value: Option<Quantity>| match value.and_then(Quantity::known) {
            Some(v) => positive(&name, v),
            None => Ok(()),
        };
        let bounds = |name: String, value: Option<Quantity>, [lo, hi]: [Option<f64>; 2]| {
            let Some(v) = value.and_then(Quantity::known) else { return Ok(()) };
            let (lo, hi) = (lo.unwrap_or(v), hi.unwrap_or(v));
            if 0.0 <= lo && lo <= v && v <= hi && hi.is_finite() {
                return Ok(());
            }
            Err(format!("`{name}` must lie within its bounds, got {v} of {lo} to {hi}"))
        };
        for m in &self.modes {
            more(format!("mode.{}.e_mac_pj", m.id), Some(m.e_mac_pj))?;
            more(format!("mode.{}.macs_per_cycle", m.id), m.macs_per_cycle)?;
            bounds(
                format!("mode.{}.e_mac_pj", m.id),
                Some(m.e_mac_pj),
                [m.e_mac_pj_lo, m.e_mac_pj_hi],
            )?;
        }
        for s in &self.supply_points {
            more(format!("supply_point.{}.vdd", s.id), s.vdd)?;
            more(format!("supply_point.{}.freq_mhz", s.id), s.freq_mhz)?;
            least(format!("supply_point.{}.leakage_mw", s.id), s.leakage_mw)?;
        }
        for m in &self.memories {
            let name = |key: &str| format!("memory.{}.{key}", m.name);
            more(name("size_bytes"), m.size_bytes)?;
            more(name("bandwidth_bits_per_cycle"), m.bandwidth_bits_per_cycle)?;
            more(name("reuse_weights"), m.reuse_weights)?;
            more(name("reuse_inputs"), m.reuse_inputs)?;
            more(name("reuse_outputs"), m.reuse_outputs)?;
            let prices = [
                (
                    "read_pj_per_bit",
                    m.read_pj_per_bit,
                    [m.read_pj_per_bit_lo, m.read_pj_per_bit_hi],
                ),
                (
                    "write_pj_per_bit",
                    m.write_pj_per_bit,
                    [m.write_pj_per_bit_lo, m.write_pj_per_bit_hi],
                ),
            ];
            for (key, value, limits) in prices {
                more(name(key), value)?;
                bounds(name(key), value, limits)?;
            }
        }
        for t in &self.transitions {
            let name = |key: &str| format!("transition.{:?}.{key}", t.kind);
            least(name("energy_nj"), t.energy_nj)?;
            least(name("latency_us"), t.latency_us)?;
            bounds(name("energy_nj"), t.energy_nj, [t.energy_nj_lo, t.energy_nj_hi])?;
        }
        least("static.leakage_mw".to_owned(), self.leakage_mw)?;
        let m = &self.matching;
        let exponent = [m.gating_exponent_lo, m.gating_exponent_hi];
        bounds(
            "matching.gating_exponent".to_owned(),
            Some(Quantity::Known(m.gating_exponent)),
            exponent,
        )?;
        for (name, share) in
            [("utilization_default", m.utilization_default), ("sparsity_gating", m.sparsity_gating)]
        {
            more(format!("matching.{name}"), share)?;
            if let Some(share) = share.and_then(Quantity::known)
                && share > 1.0
            {
                return Err(format!("`matching.{name}` is a share of at most 1, got {share}"));
            }
        }
        match self.uncertainty {
            Some(rel) if !(0.0..1.0).contains(&rel) => {
                Err(format!("`uncertainty.rel` must be from 0 to below 1, got {rel}"))
            }
            _ => Ok(()),
        }
    }

    /// The scope trap. A chip's measured efficiency already holds its memories, leakage and control:
    /// adding them again counts twice. A MAC alone holds none of them: saying that it does leaves them
    /// out.
    fn check_scope(&self) -> Result<(), String> {
        let scope = &self.scope;
        let extra = [
            (scope.onchip_sram, "onchip_sram"),
            (scope.control, "control"),
            (scope.leakage, "leakage"),
            (scope.dram, "dram"),
        ];
        match self.accelerator.style {
            Style::Time => Ok(()),
            Style::BottomUp => {
                if let Some((_, name)) = extra.iter().find(|(held, _)| *held) {
                    return Err(format!(
                        "`scope.{name}` = true: with style `bottom_up` the energy of a MAC is that of the multiply-accumulate alone, and memories and leakage are added; a figure that holds more belongs into a profile of style `chip_total`"
                    ));
                }
                let inside = self.memories.iter().find(|m| m.in_mac_energy);
                inside.map_or(Ok(()), |memory| {
                    Err(format!(
                        "memory `{}` with `in_mac_energy = true`: with style `bottom_up` no memory is part of the energy of a MAC",
                        memory.name
                    ))
                })
            }
            Style::ChipTotal => {
                let trap = "with style `chip_total` the energy of a MAC holds everything that `[scope]` marks true; adding it again would count it twice";
                let points = self
                    .supply_points
                    .iter()
                    .map(|s| (format!("supply_point.{}", s.id), s.leakage_mw));
                let leaks = points.chain([("static".to_owned(), self.leakage_mw)]);
                for (block, leakage) in leaks {
                    let leakage = leakage.and_then(Quantity::known).unwrap_or(0.0);
                    if scope.leakage && leakage > 0.0 {
                        return Err(format!("`{block}.leakage_mw` = {leakage}: {trap}"));
                    }
                }
                let twice = |m: &&Memory| {
                    let held = if m.is_offchip() { scope.dram } else { scope.onchip_sram };
                    !m.in_mac_energy && held
                };
                if let Some(memory) = self.memories.iter().find(twice) {
                    return Err(format!(
                        "memory `{}` with `in_mac_energy = false`: {trap}",
                        memory.name
                    ));
                }
                let left_out = |m: &&Memory| {
                    let held = if m.is_offchip() { scope.dram } else { scope.onchip_sram };
                    m.in_mac_energy && !held
                };
                self.memories.iter().find(left_out).map_or(Ok(()), |memory| {
                    Err(format!(
                        "memory `{}` with `in_mac_energy = true`: `[scope]` says that the energy of a MAC does not hold it",
                        memory.name
                    ))
                })
            }
        }
    }
}

fn positive(name: &str, value: f64) -> Result<(), String> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(format!("`{name}` must be positive, got {value}"))
}

fn check_widths(place: &str, bits: &[u8]) -> Result<(), String> {
    if bits.iter().all(|b| (1..=16).contains(b)) {
        return Ok(());
    }
    Err(format!("{place}: widths must be 1 to 16 bits, got {bits:?}"))
}

fn shape<T>(rows: &[Vec<T>]) -> Vec<usize> {
    rows.iter().map(Vec::len).collect()
}
