//! How much may come from a port, and go to it: policing, in the same rules for all. Pure; touches nothing.
//!
//! A port's rate is an element with a limit of its own (a token bucket), which is found beyond that and not before; so it is known again by who reads the
//! elements. No object of nf_tables' stands for it, which would have to have a name, and to be taken away after what refers to it.

use super::{
    expression::{
        Field::{Interface, Out},
        Test::In,
        Verdict::Drop,
    },
    rules::{self, Element, Rule},
    table::Set,
    wire::{Attributes, Item},
};
use crate::{attribute::attributes, rate::Rate};

pub const OVER_FROM_RULES: &[Rule] =
    &[("counted", &[In(Interface, Set::OverFrom)], Drop), ("beyond its rate", &[], Drop)];
pub const OVER_TO_RULES: &[Rule] = &[("counted", &[In(Out, Set::OverTo)], Drop), ("beyond its rate", &[], Drop)];

/// Bytes that a bucket holds beyond those of a second: a packet of the greatest length that a guest and the host exchange unsplit, twice, so that the
/// least rate lets it through as well.
pub const BURST: u64 = 2 << 16;

/// A limit, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    rate: u64,
    /// Seconds.
    unit: u64,
    burst: u64,
    /// NFT_LIMIT_PKT_BYTES.
    kind: u64,
    /// NFT_LIMIT_F_INV: it is met beyond the rate.
    flags: u64,
}

impl Limit {
    /// So many bytes a second.
    pub fn of(rate: u64) -> Limit {
        Limit { rate, unit: 1, burst: BURST, kind: 1, flags: 1 }
    }

    /// NFTA_EXPR_NAME, NFTA_EXPR_DATA: NFTA_LIMIT_RATE, _UNIT, _BURST, _TYPE, _FLAGS.
    pub fn write(self, one: &mut Attributes) {
        let Limit { rate, unit, burst, kind, flags } = self;
        one.text(1, "limit").nested(2, |data| {
            data.bytes(1, &rate.to_be_bytes()).bytes(2, &unit.to_be_bytes());
            [(3, burst), (4, kind), (5, flags)]
                .into_iter()
                .for_each(|(part, value)| _ = data.number(part, value as u32));
        });
    }

    /// Reads it; `None` for any other expression.
    pub fn read(expression: &[u8]) -> Option<Limit> {
        if part(expression, 1)? != b"limit\0" {
            return None;
        }
        let data = part(expression, 2)?;
        let number = |wanted| {
            let value = part(&data, wanted)?;
            (value.len() <= 8).then(|| value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        };
        Some(Limit { rate: number(1)?, unit: number(2)?, burst: number(3)?, kind: number(4)?, flags: number(5)? })
    }
}

/// What that attribute of a list is.
fn part(list: &[u8], wanted: u16) -> Option<Vec<u8>> {
    attributes(list).flatten().find(|part| part.kind() == wanted).map(|part| part.value().to_vec())
}

/// What a port has of it.
pub fn elements(interface: &str, rate: Rate) -> Vec<Element> {
    let ways = [(rate.from_guest, Set::RatesFrom, Set::OverFrom), (rate.to_guest, Set::RatesTo, Set::OverTo)];
    let name = rules::name(interface).to_vec();
    let limited = ways.into_iter().filter(|(rate, ..)| *rate != 0);
    let elements = limited.flat_map(|(rate, limits, over)| {
        let item = Item { key: name.clone(), limit: Some(Limit::of(rate)), ..Item::default() };
        [Element { set: limits, item }, Element::new(over, name.clone())]
    });
    elements.collect()
}

/// Notes what an element says of its port's rate.
pub fn read(element: &Element, rate: &mut Rate) {
    let limit = element.item.limit.map_or(0, |limit| limit.rate);
    match element.set {
        Set::RatesFrom => rate.from_guest = limit,
        Set::RatesTo => rate.to_guest = limit,
        _ => {}
    }
}
