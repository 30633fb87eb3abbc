//! One test: a cluster, clients, a nemesis, then calm, reads of everything, and the checkers.
//!
//! The nemesis and the clients begin together. Faults come and go, one or two at a time, with calm between them, and
//! all of it is drawn from the seed ([`crate::schedule`]; what the operating system does of it is not). Each nemesis
//! breaks things and heals them at least once, however slow the machine: if need be the run takes longer. In the
//! last seconds the nemesis rests, so that a run shows recovery. Then everything is healed, each key is read through
//! each node from all its replicas, and the history is judged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::checker::{Anomaly, Availability, Valid, Verdict};
use crate::client::{Client, channel};
use crate::cluster::{Cluster, Disk, Fs, Isolation, Options};
use crate::edn::Edn;
use crate::nemesis::{self, Nemesis};
use crate::proto::{self, cluster_client::ClusterClient};
use crate::recorder::Recorder;
use crate::report::{Outcome, Run, Test};
use crate::schedule::{self, LEAST_HARM, LEAST_QUIET, LEAST_REST, Turn};
use crate::workload::{Keys, Worker, Workload};

/// The keyspace of a run.
const KEYSPACE: &str = "jepsen";

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `quoral` binary.
    pub binary: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// The names of the nemeses.
    pub nemeses: Vec<String>,
    /// How long clients run.
    pub time: Duration,
    /// How many nodes.
    pub nodes: usize,
    /// How many clients.
    pub clients: u64,
    /// Operations a second, of all clients together.
    pub rate: u32,
    /// The deadline of each request.
    pub timeout: Duration,
    /// Decides what is drawn.
    pub seed: u64,
    /// The command that runs it again.
    pub command: String,
    /// What it must show, besides no anomaly.
    pub bar: Bar,
}

/// What a run must show so that it proves enough.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    /// The share of the operations that must be acknowledged. With 0 it is one operation.
    pub acknowledged: f64,
    /// Whether a nemesis that can't act on this machine is enough to prove too little. Else it is left out only.
    pub all_nemeses: bool,
    /// How long the cluster may take to be well again at the end, and then the reads of all keys.
    pub patience: Duration,
}

impl Bar {
    /// Of a run that a person looks at.
    pub const FULL: Bar = Bar { acknowledged: 0.5, all_nemeses: true, patience: Duration::from_secs(60) };
    /// Of a run on any machine, however slow, and whatever faults it allows.
    pub const ANYWHERE: Bar =
        Bar { acknowledged: 0.0, all_nemeses: false, patience: Duration::from_secs(240) };
}

/// What came of a run.
#[derive(Debug)]
pub struct Done {
    /// The worst of the verdicts.
    pub valid: Valid,
    /// For people.
    pub summary: String,
    /// Where its reports are.
    pub dir: PathBuf,
    /// Nemeses that can't act on this machine.
    pub without: Vec<String>,
}

/// Runs a test, and writes its reports.
///
/// # Errors
///
/// The plan can't be carried out: too little time, which is said before anything is begun, or a cluster that does
/// not come up or does not heal.
pub async fn run(workload: Arc<dyn Workload>, plan: &Plan) -> Result<Done, String> {
    schedule::turns(plan.seed, plan.nemeses.len(), plan.time)?;
    let run = Run::create(&plan.store, workload.name(), SystemTime::now())
        .map_err(|e| format!("the store: {e}"))?;
    let mut nemeses = Vec::new();
    for name in &plan.nemeses {
        nemeses.push(nemesis::by_name(name).ok_or_else(|| format!("nemesis: there is none named {name:?}"))?);
    }
    let options = options(&*workload, &nemeses, plan, run.dir());
    let mut cluster = Cluster::start(options).await.map_err(|e| format!("the cluster: {e}"))?;
    let mut left_out = cluster.left_out().to_vec();
    nemeses.retain(|nemesis| match nemesis.probe(&cluster) {
        Ok(()) => true,
        Err(why) => {
            left_out.push(format!("{}: {why}", nemesis.name()));
            false
        }
    });
    left_out.iter().for_each(|what| eprintln!("LEFT OUT: {what}"));
    let able = |name: &String| nemeses.iter().any(|nemesis| nemesis.name() == name);
    let without = plan.nemeses.iter().filter(|name| !able(name)).cloned().collect();
    let asked = match plan.bar.all_nemeses {
        true => plan.nemeses.clone(),
        false => nemeses.iter().map(|nemesis| nemesis.name().to_owned()).collect(),
    };
    let result = play(&workload, plan, &mut cluster, &mut nemeses).await;
    let (crashed, excused, names) = (cluster.crashed(), cluster.excused(), cluster.names());
    let stopped = cluster.stop().await;
    let played = result?;
    stopped.map_err(|e| format!("the cluster's end: {e}"))?;
    let test = Test {
        workload: workload.name().to_owned(),
        nemeses: asked,
        seed: plan.seed,
        nodes: names,
        seconds: plan.time.as_secs(),
        concurrency: usize::try_from(plan.clients).unwrap_or(usize::MAX),
        left_out,
        options: vec![
            ("rate".into(), Edn::from(u64::from(plan.rate))),
            ("timeout-ms".into(), Edn::from(u64::try_from(plan.timeout.as_millis()).unwrap_or(u64::MAX))),
            ("excused".into(), Edn::Vector(excused.into_iter().map(Edn::Str).collect())),
        ],
        command: plan.command.clone(),
    };
    let history = played.recorder.history();
    let mut verdicts = judge(&*workload, history.clone(), plan.bar.acknowledged).await?;
    verdicts.push(("nodes".into(), nodes_verdict(crashed)));
    verdicts.push(("nemesis".into(), nemesis_verdict(&test, &played)));
    let outcome = Outcome { test: &test, history: &history, verdicts: &verdicts };
    run.write(&outcome).map_err(|e| format!("the reports: {e}"))?;
    Ok(Done { valid: outcome.valid(), summary: run.summary(&outcome), dir: run.dir(), without })
}

/// Judges a history by a workload's checkers; `acknowledged` is the share of operations that must be.
pub async fn judge(
    workload: &dyn Workload,
    history: crate::history::History,
    acknowledged: f64,
) -> Result<Vec<(String, Verdict)>, String> {
    let mut checkers = workload.checkers();
    checkers.push(Box::new(Availability { acknowledged, ..Availability::default() }));
    let judged = tokio::task::spawn_blocking(move || {
        checkers.iter().map(|checker| (checker.name().to_owned(), checker.check(&history))).collect()
    });
    judged.await.map_err(|e| format!("the checkers: {e}"))
}

fn options(workload: &dyn Workload, nemeses: &[Box<dyn Nemesis>], plan: &Plan, dir: PathBuf) -> Options {
    let needs = nemeses.iter().fold(nemesis::Needs::default(), |needs, nemesis| needs.and(nemesis.needs()));
    let is_root = Isolation::probe().0 == Isolation::Namespaces;
    Options {
        nodes: plan.nodes,
        disk: if needs.loop_disk && is_root { Disk::Loop(Fs::Xfs) } else { Disk::Plain },
        clocks: needs.clocks || workload.wants_clocks(),
        taps: needs.taps,
        seed: plan.seed,
        config: workload.config().to_owned(),
        ..Options::new(plan.binary.clone(), dir)
    }
}

/// What a run left behind, besides its cluster.
struct Played {
    recorder: Recorder,
    /// Starts of each nemesis that did harm, by name.
    acted: BTreeMap<String, u64>,
    /// Why a nemesis could not act.
    failed: Vec<String>,
    /// Keys that could not be read at the end.
    unread: Vec<String>,
}

async fn play(
    workload: &Arc<dyn Workload>,
    plan: &Plan,
    cluster: &mut Cluster,
    nemeses: &mut [Box<dyn Nemesis>],
) -> Result<Played, String> {
    let endpoints = cluster.endpoints();
    make_keyspace(&endpoints, workload.keyspace()).await?;
    let client = Client::new(&endpoints).map_err(|e| format!("the clients: {e}"))?;
    let recorder = Recorder::default();
    let stop = Arc::new(AtomicBool::new(false));
    let keys = Arc::new(Mutex::new(workload.keys()));
    let mut workers = tokio::task::JoinSet::new();
    for thread in 0..plan.clients {
        let mut rng = StdRng::seed_from_u64(plan.seed.wrapping_mul(1_000_003).wrapping_add(thread));
        let pause = Duration::from_secs_f64(plan.clients as f64 / f64::from(plan.rate.max(1)));
        let turn = StdRng::seed_from_u64(rng.random());
        let worker = Worker::new(
            client.clone(),
            recorder.clone(),
            KEYSPACE.into(),
            plan.timeout,
            thread,
            plan.clients,
            rng,
        );
        workers.spawn(work(workload.clone(), worker, keys.clone(), stop.clone(), pause, turn));
    }
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let turns = schedule::turns(plan.seed, nemeses.len(), plan.time)?;
    let failed = disturb(cluster, nemeses, &recorder, &turns, plan.time, &mut rng).await;
    stop.store(true, Ordering::Release);
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|e| format!("a client: {e}"))?;
    }
    cluster.heal_all().await.map_err(|e| format!("healing: {e}"))?;
    cluster.wait_ready(plan.bar.patience).await.map_err(|e| format!("after healing: {e}"))?;
    let count = keys.lock().unwrap_or_else(PoisonError::into_inner).count();
    let rng = StdRng::seed_from_u64(plan.seed);
    // A thread of its own, with processes that no other thread has had.
    let reader = Worker::new(client, recorder.clone(), KEYSPACE.into(), plan.timeout, 1 << 40, 1, rng);
    if workload.waits_for_hints() {
        hints_home(&endpoints, plan.bar.patience).await;
    }
    let unread = read_all(&**workload, reader, count, cluster.len(), plan.bar.patience).await;
    let acted = nemeses.iter().map(|nemesis| (nemesis.name().to_owned(), nemesis.acted())).collect();
    Ok(Played { recorder, acted, failed, unread })
}

/// Makes the keyspace, and waits until each node knows it.
async fn make_keyspace(endpoints: &[String], request: proto::CreateKeyspaceRequest) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(30);
    let request = proto::CreateKeyspaceRequest { name: KEYSPACE.into(), ..request };
    for (number, endpoint) in endpoints.iter().enumerate() {
        let mut cluster = ClusterClient::new(channel(endpoint).map_err(|e| e.to_string())?);
        loop {
            if number == 0 {
                // Taken already is as good.
                let _ = cluster.create_keyspace(request.clone()).await;
            }
            let listed = cluster.list_keyspaces(proto::ListKeyspacesRequest {}).await;
            let known =
                listed.as_ref().is_ok_and(|l| l.get_ref().keyspaces.iter().any(|k| k.name == KEYSPACE));
            if known {
                break;
            }
            if Instant::now() > end {
                return Err(format!("the keyspace: {endpoint} does not know it: {listed:?}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn work(
    workload: Arc<dyn Workload>,
    mut worker: Worker,
    keys: Arc<Mutex<Keys>>,
    stop: Arc<AtomicBool>,
    pause: Duration,
    mut rng: StdRng,
) {
    while !stop.load(Ordering::Acquire) {
        let key = keys.lock().unwrap_or_else(PoisonError::into_inner).draw(&mut rng);
        worker.wander();
        workload.step(&mut worker, key).await;
        tokio::time::sleep(pause.mul_f64(rng.random_range(0.0..2.0))).await;
    }
}

/// Starts and stops nemeses, turn by turn, until the time is over. What could not be done is told.
///
/// Turns come later than planned when nemeses take their time. Then those that are nobody's first are left out, and
/// the firsts, if need be, go on behind the end.
async fn disturb(
    cluster: &mut Cluster,
    nemeses: &mut [Box<dyn Nemesis>],
    recorder: &Recorder,
    turns: &[Turn],
    time: Duration,
    rng: &mut StdRng,
) -> Vec<String> {
    let mut failed = Vec::new();
    let begin = Instant::now();
    let last = turns.last().map_or(time, |turn| turn.until);
    let mut calm_since = begin;
    for turn in turns {
        let at = (begin + turn.at).max(calm_since + LEAST_QUIET);
        let harm = turn.until - turn.at;
        if !turn.is_first && at + harm > begin + last + LEAST_QUIET {
            break;
        }
        tokio::time::sleep_until(at.into()).await;
        for which in &turn.who {
            let nemesis = &mut nemeses[*which];
            let name = nemesis.name();
            match nemesis.start(cluster, rng).await {
                Ok(what) => recorder.nemesis(&format!("start-{name}"), what),
                Err(error) => failed.push(format!("start-{name}: {error}")),
            }
        }
        // Of the harm itself there is a least, however long it took to do it.
        tokio::time::sleep_until((at + harm).max(Instant::now() + LEAST_HARM / 2).into()).await;
        for which in &turn.who {
            let nemesis = &mut nemeses[*which];
            let name = nemesis.name();
            match nemesis.stop(cluster, rng).await {
                Ok(what) => recorder.nemesis(&format!("stop-{name}"), what),
                Err(error) => failed.push(format!("stop-{name}: {error}")),
            }
        }
        calm_since = Instant::now();
    }
    tokio::time::sleep_until((begin + time).max(calm_since + LEAST_REST).into()).await;
    failed
}

/// Waits until no node keeps a hint for another, or the time is over.
async fn hints_home(endpoints: &[String], patience: Duration) {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        for endpoint in endpoints {
            let Ok(channel) = channel(endpoint) else { continue };
            let told = ClusterClient::new(channel).hints(proto::HintsRequest {}).await;
            if told.is_ok_and(|told| told.get_ref().silent.is_empty() && told.get_ref().logs.is_empty()) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Reads each key through each node. Returns what could not be read.
async fn read_all(
    workload: &dyn Workload,
    mut reader: Worker,
    keys: u64,
    nodes: usize,
    patience: Duration,
) -> Vec<String> {
    let mut unread = Vec::new();
    let end = Instant::now() + patience;
    for key in 0..keys {
        for node in 0..nodes {
            while !workload.final_read(&mut reader, key, node).await {
                if Instant::now() > end {
                    unread.push(format!("key {key} through n{}", node + 1));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    unread
}

fn anomaly(text: String) -> Anomaly {
    Anomaly { text, key: None, events: Vec::new() }
}

/// No node ends by itself, and none panics.
fn nodes_verdict(crashed: Vec<String>) -> Verdict {
    let valid = if crashed.is_empty() { Valid::Yes } else { Valid::No };
    Verdict { valid, anomalies: crashed.into_iter().map(anomaly).collect(), figures: Vec::new() }
}

/// A run in which a nemesis did nothing, or a key could not be read at the end, proves too little.
fn nemesis_verdict(test: &Test, played: &Played) -> Verdict {
    let idle = test.nemeses.iter().filter(|name| played.acted.get(*name).is_none_or(|acted| *acted == 0));
    let mut anomalies: Vec<Anomaly> = idle.map(|name| anomaly(format!("{name} never acted"))).collect();
    anomalies
        .extend(played.unread.iter().map(|what| anomaly(format!("could not be read at the end: {what}"))));
    let valid = if anomalies.is_empty() { Valid::Yes } else { Valid::Unknown };
    let acted = played.acted.iter().map(|(name, acted)| (name.clone(), Edn::from(*acted)));
    let failed = played.failed.iter().cloned().map(Edn::Str).collect();
    let figures = vec![("acted".into(), Edn::map(acted)), ("failed".into(), Edn::Vector(failed))];
    Verdict { valid, anomalies, figures }
}
