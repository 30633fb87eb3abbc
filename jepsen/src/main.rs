//! `quoral-jepsen`: runs tests, shows their reports, and tests its own checkers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use quoral_jepsen::checker::{Valid, canary};
use quoral_jepsen::cluster::Isolation;
use quoral_jepsen::history::History;
use quoral_jepsen::runner::{self, Plan};
use quoral_jepsen::{nemesis, network, report, serve, workload};

/// A Jepsen-style fault suite for Quoral.
#[derive(Debug, Parser)]
#[command(after_help = "Exit codes: 0 all is well, 1 an anomaly (or an error), 2 too little was proved.

Examples:
  quoral-jepsen test --workload register --nemesis partition,kill --time 60
  quoral-jepsen test-all --time 30
  quoral-jepsen serve")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs one test.
    Test(TestArgs),
    /// Runs each workload against each group of nemeses.
    TestAll(AllArgs),
    /// Judges a `history.edn` again.
    Analyze {
        /// Its workload.
        #[arg(long)]
        workload: String,
        /// The file.
        history: PathBuf,
    },
    /// Shows the store in a browser.
    Serve {
        /// Where.
        #[arg(long, default_value = "127.0.0.1:8080")]
        address: SocketAddr,
        /// The store.
        #[arg(long, default_value = "jepsen/store")]
        store: PathBuf,
    },
    /// Shows each checker a history that it must reject.
    SelfTest,
    /// Lists workloads and nemeses.
    List,
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// How long clients run, in seconds.
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// How many nodes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// How many clients.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    clients: u64,
    /// Operations a second, of all clients together.
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// Deadline of each request, in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    timeout_ms: u64,
    /// Decides what is drawn. [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// The `quoral` binary. [default: the one beside this program; built if it is not there]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where reports go.
    #[arg(long, default_value = "jepsen/store")]
    store: PathBuf,
}

#[derive(Debug, Args)]
struct TestArgs {
    /// What clients do; `list` names all.
    #[arg(long, default_value = "register")]
    workload: String,
    /// Who breaks things, by comma; `none` for nobody.
    #[arg(long, value_delimiter = ',', default_value = "kill,partition")]
    nemesis: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct AllArgs {
    /// Workloads, by comma. [default: all]
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Groups of nemeses, by semicolon; in a group by comma.
    #[arg(
        long,
        value_delimiter = ';',
        default_value = "none;kill;pause;partition;loss,delay,jitter,duplicate;clock;power;fsync-error,slow-fsync;\
                         full-disk;restart;kill,partition,pause"
    )]
    nemeses: Vec<String>,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let in_cluster = matches!(cli.verb, Verb::Test(_) | Verb::TestAll(_));
    // Before the runtime: its threads are to be in the hub too.
    if in_cluster
        && Isolation::probe().0 == Isolation::Namespaces
        && let Err(error) = network::enter_hub()
    {
        eprintln!("error: the network: {error}");
        return ExitCode::from(1);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime: {error}");
            return ExitCode::from(1);
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            result = dispatch(cli.verb) => result,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    });
    match ended {
        Ok(Valid::Yes) => ExitCode::SUCCESS,
        Ok(Valid::No) => ExitCode::from(1),
        Ok(Valid::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

async fn dispatch(verb: Verb) -> Result<Valid, String> {
    match verb {
        Verb::Test(args) => one(&args.workload, args.nemesis, &args.common).await,
        Verb::TestAll(args) => all(args).await,
        Verb::Analyze { workload, history } => analyze(&workload, &history).await,
        Verb::Serve { address, store } => {
            eprintln!("http://{address}/ shows {}", store.display());
            serve::serve(store, address).await.map_err(|e| e.to_string())?;
            Ok(Valid::Yes)
        }
        Verb::SelfTest => Ok(self_test()),
        Verb::List => {
            println!("workloads:");
            workload::all().iter().for_each(|w| println!("  {:16} {}", w.name(), w.about()));
            println!("nemeses:\n  {}", nemesis::NAMES.join(", "));
            Ok(Valid::Yes)
        }
    }
}

async fn one(workload: &str, nemeses: Vec<String>, common: &Common) -> Result<Valid, String> {
    let found = workload::by_name(workload)
        .ok_or_else(|| format!("--workload: there is none named {workload:?}; `list` names all"))?;
    let nemeses: Vec<String> =
        nemeses.into_iter().filter(|name| name != "none" && !name.is_empty()).collect();
    if let Some(unknown) = nemeses.iter().find(|name| nemesis::by_name(name).is_none()) {
        return Err(format!("--nemesis: there is none named {unknown:?}; `list` names all"));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = common.seed.unwrap_or_else(|| now.map_or(0, |now| now.as_secs()));
    let listed = if nemeses.is_empty() { "none".into() } else { nemeses.join(",") };
    let command = format!(
        "cargo run -p quoral-jepsen -- test --workload {workload} --nemesis {listed} --time {} --nodes {} \
         --clients {} --rate {} --timeout-ms {} --seed {seed}",
        common.time, common.nodes, common.clients, common.rate, common.timeout_ms
    );
    eprintln!("== {workload} against {listed}, {} s, seed {seed}", common.time);
    let plan = Plan {
        binary: binary(common.binary.as_deref())?,
        store: common.store.clone(),
        nemeses,
        time: Duration::from_secs(common.time),
        nodes: usize::try_from(common.nodes).unwrap_or(5),
        clients: common.clients,
        rate: common.rate,
        timeout: Duration::from_millis(common.timeout_ms.max(1)),
        seed,
        command,
    };
    let done = runner::run(Arc::from(found), &plan).await?;
    println!("{}", done.summary);
    Ok(done.valid)
}

async fn all(args: AllArgs) -> Result<Valid, String> {
    let named = |name: &String| workload::by_name(name).is_none();
    if let Some(unknown) = args.workloads.iter().find(|name| named(name)) {
        return Err(format!("--workloads: there is none named {unknown:?}; `list` names all"));
    }
    let workloads: Vec<String> = match args.workloads.is_empty() {
        true => workload::all().iter().map(|workload| workload.name().to_owned()).collect(),
        false => args.workloads,
    };
    let mut lines = Vec::new();
    let mut worst = Valid::Yes;
    for workload in &workloads {
        for group in &args.nemeses {
            let nemeses = group.split(',').map(str::to_owned).collect();
            let word = match one(workload, nemeses, &args.common).await {
                Ok(valid) => {
                    worst = worst.max(valid);
                    format!("{valid:?}")
                }
                Err(error) => {
                    worst = Valid::No;
                    format!("error: {error}")
                }
            };
            lines.push(format!("{workload:16} {group:40} {word}"));
        }
    }
    println!("\n{}", lines.join("\n"));
    Ok(worst)
}

async fn analyze(name: &str, file: &Path) -> Result<Valid, String> {
    let workload =
        workload::by_name(name).ok_or_else(|| format!("--workload: there is none named {name:?}"))?;
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let history = History::parse(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    history.validate().map_err(|e| format!("{}: {e}", file.display()))?;
    let verdicts = runner::judge(&*workload, history.clone()).await?;
    let test = report::Test {
        workload: name.into(),
        nemeses: Vec::new(),
        seed: 0,
        nodes: Vec::new(),
        seconds: 0,
        concurrency: 0,
        left_out: Vec::new(),
        options: Vec::new(),
        command: String::new(),
    };
    let outcome = report::Outcome { test: &test, history: &history, verdicts: &verdicts };
    println!("{}", report::summary(&outcome));
    Ok(outcome.valid())
}

fn self_test() -> Valid {
    let mut worst = Valid::Yes;
    for canary in canary::canaries() {
        let verdict = canary.checker.check(&canary.history).valid;
        let word = if verdict == Valid::No { "rejected" } else { "NOT REJECTED" };
        println!("{:20} {word}: {}", canary.checker.name(), canary.why);
        if verdict != Valid::No {
            worst = Valid::No;
        }
    }
    worst
}

/// The binary to test: the one given, or the one beside this program, which is built by cargo if it is not there.
fn binary(given: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(given) = given {
        return given.canonicalize().map_err(|e| format!("--binary: {}: {e}", given.display()));
    }
    let own = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let dir = own.parent().unwrap_or(Path::new("."));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", "quoral", "--bin", "quoral"]);
    if dir.ends_with("release") {
        cargo.arg("--release");
    }
    // Beside this program's own sources, so that a binary is never older than them.
    match cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).status() {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("cargo build of quoral: {status}")),
        Err(error) if dir.join("quoral").exists() => {
            eprintln!("cargo: {error}; the binary beside is used as it is")
        }
        Err(error) => return Err(format!("--binary: none given, and cargo can't be run: {error}")),
    }
    let binary = dir.join("quoral");
    if binary.exists() { Ok(binary) } else { Err(format!("--binary: there is no {}", binary.display())) }
}
