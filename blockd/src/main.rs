//! The daemon's binary: parse, configure, run, stop on SIGTERM, SIGINT or the admin method `stop`.
//!
//! `blockd call METHOD` performs one method in this process, without a daemon: `cfsctl block` uses it for devices that no
//! blockd has, and to measure.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use blockd::config::Config;
use blockd::daemon::{self, Daemon};
use blockd::{admin, door, nvmet};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Owns block devices and serves volumes over shared memory and NVMe/TCP.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(flatten)]
    serve: Option<Serve>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Args)]
struct Serve {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
    /// Checks the configuration and exits; touches no device.
    #[arg(long)]
    check_config: bool,
    /// Stops when stdin ends, which means that the supervisor has gone.
    #[arg(long)]
    supervised: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Performs one method without a daemon, and prints its JSON-RPC answer: `cfsctl block` is its face.
    Call {
        /// `device.identify`, `device.format`, `device.wipe` or `bench`.
        method: String,
        /// JSON, as on the admin socket.
        params: String,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse() {
        Arguments { verb: Some(Verb::Call { method, params }), .. } => {
            let answer = admin::call(&method, &params);
            println!("{answer}");
            let failed = answer.get("error").is_some();
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Arguments { serve: Some(arguments), .. } => serve(&arguments).map(|()| ExitCode::SUCCESS),
        Arguments { serve: None, verb: None } => anyhow::bail!("--config FILE is missing"),
    }
}

fn serve(arguments: &Serve) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check_config {
        return Ok(());
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the devices are opened, so that an early signal is not lost nor ends us halfway.
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
    drop(guard);

    let asked = Arc::new(tokio::sync::Notify::new());
    if arguments.supervised {
        let asked = Arc::clone(&asked);
        std::thread::spawn(move || {
            // What arrives means nothing; an error is an end, too.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            asked.notify_one();
        });
    }
    let daemon = Arc::new(Daemon::start(&config)?);
    let stop: admin::Stop = Arc::new({
        let asked = Arc::clone(&asked);
        move || asked.notify_one()
    });
    let admin_socket = daemon::bind(&config.admin_socket)?;
    let ipc_socket = door::bind(&config.ipc_socket)?;
    if let (Some(config), Some(target)) = (&config.nvmet, daemon.nvmet()) {
        let listeners = nvmet::Listeners::bind(config, target)?;
        let (io, discovery) = (listeners.addresses(false), listeners.addresses(true));
        tracing::info!(?io, ?discovery, "serving NVMe/TCP");
        let for_hosts = Arc::clone(&daemon);
        std::thread::spawn(move || nvmet::serve(&listeners, &for_hosts));
    }
    let for_admin = Arc::clone(&daemon);
    std::thread::spawn(move || admin::serve(&admin_socket, &for_admin, &stop));
    let for_door = Arc::clone(&daemon);
    std::thread::spawn(move || door::serve(&ipc_socket, &for_door));
    tracing::info!(socket = %config.ipc_socket.display(), "blockd is ready");

    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = asked.notified() => {}
        }
    });
    tracing::info!("stopping");
    daemon.stop();
    for socket in [&config.ipc_socket, &config.admin_socket] {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}
