//! Canaries of sessions, batches, times to live, and keyspaces with several lives.

use super::{Canary, list};
use crate::checker::{Batches, Draft, Durable, Expiry, Lives, Sessions};
use crate::edn::Edn;
use crate::history::Kind;

/// All of them.
pub(super) fn all() -> Vec<Canary> {
    [sessions(), durable(), batches(), expiry(), lives()].into_iter().flatten().collect()
}

fn in_session(session: i64, stamp: i64) -> [(&'static str, Edn); 2] {
    [("session", Edn::Int(session)), ("stamp", Edn::Int(stamp))]
}

fn sessions() -> Vec<Canary> {
    let covering = |session: i64, covers: &[i64]| [("session", Edn::Int(session)), ("covers", list(covers))];
    vec![
        Canary::new(Sessions, "a session missed its own write through another node", |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &in_session(7, 5));
            draft.done(1, "write", 0, 2_i64, &in_session(7, 6));
            let (value, seen) = if bad { (1_i64, 5) } else { (2, 6) };
            draft.done(1, "read", 0, value, &in_session(7, seen));
            // Another session may.
            draft.done(1, "read", 0, 1_i64, &in_session(8, 5));
        }),
        Canary::new(Sessions, "a session read something older than before", |draft, bad| {
            draft.done(1, "read", 0, 2_i64, &in_session(7, 6));
            draft.done(1, "read", 0, 1_i64, &in_session(if bad { 7 } else { 8 }, 5));
            draft.done(1, "read", 0, 3_i64, &in_session(7, 9));
        }),
        Canary::new(Sessions, "a session's write went below what it had read", |draft, bad| {
            draft.done(1, "read", 0, 2_i64, &in_session(7, 6));
            draft.done(1, "write", 0, 3_i64, &in_session(7, if bad { 6 } else { 7 }));
        }),
        Canary::new(Sessions, "a session's own sibling is gone", move |draft, bad| {
            draft.done(1, "append", 0, 1_i64, &covering(7, &[]));
            draft.lost(2, "append", 0, 2_i64, &covering(8, if bad { &[] } else { &[1] }));
            draft.done(1, "read", 0, list(&[2]), &[("session", Edn::Int(7))]);
        }),
        Canary::new(Sessions, "a sibling came back for a session that had replaced it", move |draft, bad| {
            draft.done(1, "append", 0, 1_i64, &covering(7, &[]));
            draft.done(1, "append", 0, 2_i64, &covering(7, &[1]));
            draft.done(1, "read", 0, list(if bad { &[1, 2] } else { &[2] }), &[("session", Edn::Int(7))]);
        }),
    ]
}

fn durable() -> Vec<Canary> {
    let last = ("final", Edn::Bool(true));
    let (stamped, listed) = (last.clone(), last);
    vec![
        Canary::new(Durable, "an acknowledged write is not there at the end", move |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &[("stamp", Edn::Int(5))]);
            draft.done(1, "write", 0, 2_i64, &[("stamp", Edn::Int(6))]);
            let (value, seen) = if bad { (1_i64, 5) } else { (2, 6) };
            draft.done(2, "read", 0, value, &[("stamp", Edn::Int(seen)), stamped.clone()]);
        }),
        Canary::new(Durable, "an acknowledged sibling is not there at the end", move |draft, bad| {
            draft.done(1, "append", 0, 1_i64, &[("covers", list(&[]))]);
            draft.done(1, "append", 0, 2_i64, &[("covers", list(if bad { &[] } else { &[1] }))]);
            draft.done(2, "read", 0, list(&[2]), std::slice::from_ref(&listed));
        }),
    ]
}

fn item(place: i64, items: i64, stamp: i64) -> Vec<(&'static str, Edn)> {
    let fields = [("batch", 1), ("item", place), ("items", items), ("stamp", stamp)];
    fields.into_iter().map(|(name, number)| (name, Edn::Int(number))).collect()
}

fn batches() -> Vec<Canary> {
    vec![
        Canary::new(Batches, "an answer says nothing of an item", |draft, bad| {
            draft.invoke(1, "write", 0, 1_i64).invoke(2, "write", 1, 2_i64).ok(1, 1_i64, &item(0, 2, 5));
            let mut second = item(1, 2, 6);
            second.extend(bad.then_some(("unreported", Edn::Bool(true))));
            draft.complete(2, Kind::Info, 2_i64, &second);
        }),
        Canary::new(Batches, "two items have one place", |draft, bad| {
            draft.invoke(1, "write", 0, 1_i64).invoke(2, "write", 1, 2_i64).ok(1, 1_i64, &item(0, 2, 5));
            draft.ok(2, 2_i64, &item(i64::from(!bad), 2, 6));
        }),
        Canary::new(Batches, "a get in a batch missed the put before it", |draft, bad| {
            draft.invoke(1, "write", 0, 1_i64).invoke(2, "read", 0, Edn::Nil).ok(1, 1_i64, &item(0, 2, 5));
            let (value, seen) = if bad { (9_i64, 4) } else { (1, 5) };
            draft.ok(2, value, &item(1, 2, seen));
        }),
    ]
}

fn expiry() -> Vec<Canary> {
    let ttl = [("ttl-ms", Edn::Int(2_000)), ("stamp", Edn::Int(5))];
    let own = ttl.clone();
    let (early, named) = (ttl.clone(), ttl.clone());
    vec![
        Canary::new(Expiry, "a value came back after it had expired", move |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &own).done(1, "read", 0, 1_i64, &[]);
            draft.invoke(2, "read", 0, Edn::Nil).after(3_000).ok(2, Edn::Nil, &[]);
            draft.done(2, "read", 0, if bad { Edn::Int(1) } else { Edn::Nil }, &[]);
        }),
        Canary::new(Expiry, "a value was gone before its time", move |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &early).done(1, "read", 0, 1_i64, &[]);
            draft.invoke(2, "read", 0, Edn::Nil).after(if bad { 1_000 } else { 2_500 });
            draft.ok(2, Edn::Nil, &[]);
        }),
        Canary::new(Expiry, "a value was read after the moment that its reader names", move |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &named);
            let at = if bad { 1_000_000 } else { 900_000 };
            let told = [("at-ms", Edn::Int(at)), ("expires-ms", Edn::Int(900_100))];
            draft.done(2, "read", 0, 1_i64, &told);
            draft.invoke(2, "read", 0, Edn::Nil).after(3_000).ok(2, Edn::Nil, &[]);
        }),
        Canary::new(Expiry, "what replaced it lives for ever, and it is gone", move |draft, bad| {
            draft.done(1, "write", 0, 1_i64, &ttl).done(1, "read", 0, 1_i64, &[]);
            let fields = [("stamp", Edn::Int(6)), ("ttl-ms", Edn::Int(2_000))];
            draft.done(1, "write", 0, 2_i64, if bad { &fields[..1] } else { &fields });
            draft.invoke(2, "read", 0, Edn::Nil).after(3_000).ok(2, Edn::Nil, &[]);
        }),
    ]
}

fn lives() -> Vec<Canary> {
    let through = |node: &str, stamp: i64| [("node", Edn::from(node)), ("stamp", Edn::Int(stamp))];
    let made = |draft: &mut Draft, node: &str, id: i64| {
        draft.done(0, "create", 0, id, &[("node", Edn::from(node))]);
    };
    let begun = move |draft: &mut Draft| {
        made(draft, "n1", 1);
        draft.done(1, "write", 0, 1_i64, &through("n1", 5)).done(1, "read", 0, 1_i64, &through("n1", 5));
        draft.done(0, "drop", 0, Edn::Nil, &[("node", Edn::from("n1"))]);
        made(draft, "n1", 2);
    };
    vec![
        Canary::new(Lives, "a value of an earlier life was read", move |draft, bad| {
            begun(draft);
            // Through a node that has not heard it may be.
            draft.done(2, "read", 0, 1_i64, &through("n2", 5));
            draft.done(0, "learn", 0, 2_i64, &[("node", Edn::from("n2"))]);
            let (value, seen) = if bad { (Edn::Int(1), 5) } else { (Edn::Nil, 0) };
            draft.done(2, "read", 0, value, &through("n2", seen));
        }),
        Canary::new(Lives, "what was acknowledged in this life was lost", move |draft, bad| {
            begun(draft);
            draft.done(1, "write", 0, 2_i64, &through("n1", 6));
            if !bad {
                draft.lost(0, "drop", 0, Edn::Nil, &[("node", Edn::from("n1"))]);
            }
            draft.done(2, "read", 0, Edn::Nil, &through("n1", 0));
        }),
    ]
}
