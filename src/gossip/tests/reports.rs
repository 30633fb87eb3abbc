//! What nodes say of themselves, and what comes in that nobody should have sent.

use super::*;

#[test]
fn states_reach_all_and_the_newest_wins() {
    let mut sim = Sim::cluster(13, 5);
    for host in 1..=5 {
        sim.step(host, Event::Publish(report(u32::try_from(host).expect("small"))));
    }
    let told = |sim: &Sim, node: u64, value: u32| {
        sim.hosts.keys().all(|h| *h == node || load(sim, *h, node) == Some(value))
    };
    sim.until("told", ms(1_500), |sim| (1..=5).all(|n| told(sim, n, n as u32)));
    for value in 100..150 {
        sim.step(2, Event::Publish(report(value)));
        sim.run(ms(20));
    }
    sim.until("newest", ms(1_500), |sim| told(sim, 2, 149));

    // Who joins later, or was away, is told too; and nothing of an earlier life is kept.
    sim.boot(6, 6, 1, &[1]);
    sim.until("late comer", ms(3_000), |sim| told(sim, 2, 149) && told(sim, 5, 5));
    sim.kill(5);
    sim.boot(5, 5, 10, &[1]);
    sim.until("restarted", ms(3_000), |sim| sim.all_see_all());
    assert_eq!(load(&sim, 1, 5), None);
    sim.step(5, Event::Publish(report(55)));
    sim.until("its new state", ms(1_500), |sim| told(sim, 5, 55));
}

#[test]
fn a_report_over_its_limits_is_refused_with_its_field() {
    let mut sim = Sim::cluster(14, 2);
    let mut bad = report(1);
    bad.client_address = "x".repeat(limits::GOSSIP_ADDRESS_BYTES + 1);
    sim.step(1, Event::Publish(bad));
    assert!(sim.has_seen(1, |e| matches!(e, Effect::Refused(i) if i.field == "client_address")));
    sim.run(ms(3_000));
    assert_eq!(load(&sim, 2, 1), None);
}

#[test]
fn who_finds_no_seed_says_so_and_keeps_trying() {
    let mut sim = Sim::new(15);
    sim.boot(1, 1, 1, &[1, 2]);
    sim.run(ms(21_000));
    let said: Vec<&Effect> =
        sim.hosts[&1].seen.iter().filter(|e| matches!(e, Effect::SeedsSilent { .. })).collect();
    assert_eq!(said, [&Effect::SeedsSilent { since: Mono(0) }; 4]);
    // It looks the names up again, and the seed has another address now.
    assert!(sim.hosts[&1].seen.iter().filter(|e| **e == Effect::Resolve).count() >= 20);
    sim.boot(3, 3, 1, &[]);
    sim.step(1, Event::Seeds(vec![address(3)]));
    sim.until("found", ms(1_000), |sim| sim.all_see_all());
}

#[test]
fn a_node_that_is_its_own_only_seed_is_content() {
    let mut sim = Sim::new(16);
    sim.boot(1, 1, 1, &[1]);
    sim.run(ms(12_000));
    assert!(!sim.has_seen(1, |e| matches!(e, Effect::SeedsSilent { .. })));
}

#[test]
fn junk_is_dropped_and_counted() {
    let mut sim = Sim::cluster(17, 3);
    let before = sim.machine(1).members().clone();
    // Recorded packets of this cluster, cut, damaged, and as another cluster would send them.
    let mut recorded = Vec::new();
    while recorded.len() < 50 {
        sim.advance();
        recorded.extend(sim.wire.values().map(|(_, _, bytes)| bytes.clone()));
    }
    let mut rng = StdRng::seed_from_u64(3);
    let dropped = |sim: &Sim| sim.machine(1).drops().values().sum::<u64>();
    for round in 0..4_000u64 {
        let mut bytes = recorded[rng.random_range(0..recorded.len())].clone();
        match round % 4 {
            0 => bytes.truncate(rng.random_range(0..bytes.len())),
            1 => {
                let place = rng.random_range(0..bytes.len());
                bytes[place] ^= rng.random_range(1..=255u8);
            }
            2 => bytes = (0..rng.random_range(0..1_500)).map(|_| rng.random()).collect(),
            _ => bytes.extend([0; 3]),
        }
        let count = dropped(&sim);
        sim.step(1, Event::Packet { from: address(9), bytes });
        assert_eq!(dropped(&sim), count + 1, "round {round}");
    }
    for reason in [Reason::TooBig, Reason::Junk, Reason::Version, Reason::Checksum] {
        assert!(sim.machine(1).drops().contains_key(&reason), "{reason}");
    }
    assert_eq!(sim.machine(1).members(), &before);

    let other_cluster = ClusterId(u128::MAX);
    let mut stranger = Membership::new(*sim.machine(2).identity(), other_cluster, StdRng::seed_from_u64(1));
    let mut effects = Vec::new();
    stranger.step(Mono(0), Event::Start { seeds: vec![address(1)] }, &mut effects);
    let bytes = effects
        .into_iter()
        .find_map(|e| if let Effect::Send { bytes, .. } = e { Some(bytes) } else { None })
        .expect("a hello");
    sim.step(1, Event::Packet { from: address(9), bytes });
    assert_eq!(sim.machine(1).drops()[&Reason::Cluster], 1);
}

/// Bodies that carry a good envelope and hostile contents: no panic, no member, each counted.
#[test]
fn hostile_contents_in_a_good_envelope_are_refused() {
    let mut sim = Sim::cluster(18, 3);
    let mut rng = StdRng::seed_from_u64(4);
    for _ in 0..4_000 {
        let body: Vec<u8> = (0..rng.random_range(0..200)).map(|_| rng.random()).collect();
        let bytes = seal(CLUSTER, &Packet::Foca(&body));
        sim.step(1, Event::Packet { from: address(9), bytes });
    }
    sim.run(ms(5_000));
    assert!(sim.all_see_all());
    assert!(sim.machine(1).drops()[&Reason::Malformed] > 3_800);
}

#[test]
fn unknown_nodes_are_refused_when_there_are_too_many() {
    let mut sim = Sim::cluster(19, 2);
    let known: BTreeSet<NodeId> = sim.machine(1).members().keys().copied().collect();
    let from = |n: u64| Identity::new(NodeId(1_000 + n), address(50), Nonce(n), 1);
    // A member only exists once foca heard it, so the crowd is made of announcements.
    for n in 0..(limits::GOSSIP_MEMBERS_MAX as u64 + 10) {
        let bytes = announcement(from(n), *sim.machine(1).identity());
        sim.step(1, Event::Packet { from: address(50), bytes });
    }
    assert_eq!(sim.machine(1).members().len(), limits::GOSSIP_MEMBERS_MAX);
    assert_eq!(sim.machine(1).drops()[&Reason::Crowded], 10 + known.len() as u64);
    let welcome = Welcome { from: from(99_999), is_elder: false, holds: None };
    sim.step(1, Event::Packet { from: address(50), bytes: seal(CLUSTER, &Packet::Welcome(welcome)) });
    assert_eq!(sim.machine(1).drops()[&Reason::Crowded], 11 + known.len() as u64);
}

/// What a node concluded while it was cut off dies with its isolation: it alone takes a new identity.
#[test]
fn a_node_that_was_cut_off_brings_no_false_news_home() {
    for seed in 0..8 {
        let mut sim = Sim::cluster(seed, 5);
        sim.partition(&[5]);
        sim.until("split", ms(5_000), |sim| {
            sim.all_see(5, Liveness::Down) && sim.machine(5).alone_since().is_some()
        });
        assert!((1..5).all(|n| sim.liveness(5, n) == Some(Liveness::Down)), "it still knows whom it lost");
        sim.run(ms(10_000));
        for process in sim.hosts.values_mut() {
            process.seen.clear();
        }
        sim.cut.clear();
        sim.until("healed", ms(10_000), |sim| sim.all_see_all());
        sim.run(ms(5_000));
        for (host, process) in &sim.hosts {
            let rejoined = process.seen.iter().filter(|e| matches!(e, Effect::Rejoined(_))).count();
            assert_eq!(rejoined, usize::from(*host == 5), "host {host}\n{}", sim.trace);
            let fell = |e: &Effect| matches!(e, Effect::Changed(c) if !c.liveness.is_live());
            assert!(!sim.has_seen(*host, fell), "host {host}\n{}", sim.trace);
        }
    }
}

/// Chaos, then calm: whatever happened, in the end all live nodes see each other and who is gone is down.
#[test]
fn after_any_chaos_all_agree() {
    for seed in 0..10 {
        let mut sim = Sim::cluster(seed, 5);
        let mut generation = 2_000;
        for _ in 0..12 {
            let host = sim.rng.random_range(1..=5);
            match sim.rng.random_range(0..7) {
                0 => sim.partition(&[host]),
                1 => sim.partition(&[host, host % 5 + 1]),
                2 => sim.cut.clear(),
                3 => sim.loss = 0.3 - sim.loss,
                4 => sim.kill(host),
                5 if !sim.hosts.contains_key(&host) => {
                    // The clock may have been set back.
                    generation = generation + sim.rng.random_range(0..3_000) - 1_000;
                    sim.boot(host, host, generation, &[1, 2, 3, 4, 5]);
                }
                _ => {
                    if let Some(process) = sim.hosts.get_mut(&host) {
                        process.frozen = true;
                        let pause = sim.rng.random_range(100..6_000);
                        sim.run(ms(pause));
                        sim.thaw(host);
                    }
                }
            }
            let pause = sim.rng.random_range(50..4_000);
            sim.run(ms(pause));
        }
        sim.cut.clear();
        sim.loss = 0.0;
        if sim.hosts.is_empty() {
            continue;
        }
        sim.until("calm", ms(20_000), |sim| {
            let gone = (1..=5).filter(|n| !sim.hosts.contains_key(n));
            sim.all_see_all()
                && gone.clone().all(|n| {
                    sim.hosts.keys().all(|h| sim.liveness(*h, n).is_none_or(|l| l == Liveness::Down))
                })
        });
        sim.run(ms(10_000));
        assert!(sim.all_see_all(), "seed {seed}: it stays calm\n{}", sim.trace);
    }
}

#[test]
fn one_seed_gives_one_trace() {
    let story = |seed| {
        let mut sim = Sim::cluster(seed, 4);
        sim.loss = 0.1;
        sim.step(2, Event::Publish(report(1)));
        sim.run(ms(5_000));
        sim.partition(&[1, 2]);
        sim.run(ms(10_000));
        sim.cut.clear();
        sim.kill(4);
        sim.run(ms(10_000));
        (sim.trace, sim.sent)
    };
    assert_eq!(story(1), story(1));
    assert_ne!(story(1), story(2));
}
