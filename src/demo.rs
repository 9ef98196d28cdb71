//! `comfygate demo`: a simulated farm of three and a gateway in front of it, nothing else needed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::cli::{Exit, with_runtime};
use crate::config::{self, Flags, Sources};
use crate::logging;
use crate::server::Server;
use crate::sim::{Sim, SimConfig};

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port of the gateway
    #[arg(short, long, default_value_t = 8100)]
    port: u16,
    /// Address of the dashboard and the admin API
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8101")]
    admin: SocketAddr,
    /// Simulated servers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    count: u16,
    /// How much faster than the clock simulated prompts run
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Pool mode: the three look like one big ComfyUI, each prompt goes to the one that is free
    #[arg(long)]
    pool: bool,
    /// Folder of a web page to serve in place of the small one
    #[arg(long, value_name = "DIR")]
    web_root: Option<PathBuf>,
}

/// Runs the demo until a signal ends it.
pub fn run(args: &Args) -> Exit {
    with_runtime(2, async {
        match farm_and_gateway(args).await {
            Ok(()) => Exit::Ok,
            Err(error) => {
                eprintln!("{error:#}");
                Exit::Usage
            }
        }
    })
}

async fn farm_and_gateway(args: &Args) -> anyhow::Result<()> {
    let mut sims = Vec::new();
    for number in 0..args.count {
        let config = SimConfig {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            speed: args.speed,
            seed: u64::from(number),
            web_root: args.web_root.clone(),
            ..SimConfig::default()
        };
        sims.push(Sim::start(config).await?);
    }
    let urls: Vec<String> = sims.iter().map(Sim::url).collect();
    let state = std::env::temp_dir().join(format!("comfygate-demo-{}", args.port));
    // Each demo begins anew: what was drained in the last one is not to puzzle anybody.
    let _ = std::fs::remove_dir_all(&state);
    let mode = if args.pool { "pool" } else { "sticky" };
    let sources = Sources {
        file: None,
        env: BTreeMap::from([
            ("COMFYGATE__MODE".to_owned(), mode.to_owned()),
            ("COMFYGATE__STATE_DIR".to_owned(), state.display().to_string()),
            ("COMFYGATE__ADMIN__LISTEN".to_owned(), args.admin.to_string()),
        ]),
        flags: Flags {
            host: Some("127.0.0.1".into()),
            port: Some(args.port),
            backends: Some(urls.join(",")),
        },
    };
    let loaded = config::load(&sources)?;
    logging::start(loaded.config.log.format);
    let server = Server::prepare(sources, loaded)?;
    println!("A farm of {} simulated ComfyUI servers, mode {mode}: {}", urls.len(), urls.join(" "));
    if let (Some(data), Some(admin)) = (server.data_address(), server.admin_address()) {
        println!("Open http://{data}/ for the page, http://{admin}/ for the dashboard.");
    }
    println!("Ctrl-C ends it.");
    server.run().await
}
