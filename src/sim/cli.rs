//! `comfygate sim`, and farms of simulated servers for the demo and for tests.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::{Sim, SimConfig};
use crate::cli::Exit;

/// Options of `comfygate sim`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Port of the first server; the others take the ones after it
    #[arg(short, long, default_value_t = 8188)]
    pub port: u16,
    /// How many servers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// `PacedImage` takes its seconds divided by this
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub speed: f64,
    /// Makes names that are drawn at random repeatable
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The static folder of comfyui-frontend-package, to serve the stock page
    #[arg(long, value_name = "DIR")]
    pub web_root: Option<PathBuf>,
    /// Largest request body in MiB; larger ones get 413
    #[arg(long, value_name = "MIB", default_value_t = 100)]
    pub max_upload_size: u32,
    /// Where the servers keep their folders, one for each port; they outlive the servers
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// A node that the servers lack; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub without_node: Vec<String>,
    /// A checkpoint that the servers have, for `CheckpointLoaderSimple`; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub model: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            port: 8188,
            count: 1,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            speed: 1.0,
            seed: 0,
            web_root: None,
            max_upload_size: 100,
            directory: None,
            without_node: Vec::new(),
            model: Vec::new(),
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err(format!("{text} is not a number above 0, such as 10")),
    }
}

/// Starts `count` servers on `first_port` and the ports after it; with port 0 each takes a free
/// one. Host, ports and count of `args` do not count here.
pub async fn start_farm(
    host: IpAddr,
    first_port: u16,
    count: u16,
    args: &Args,
) -> io::Result<Vec<Sim>> {
    let mut sims = Vec::with_capacity(count.into());
    for index in 0..count {
        let port = if first_port == 0 { Some(0) } else { first_port.checked_add(index) };
        let port = port.ok_or_else(|| {
            io::Error::other(format!("{count} servers from port {first_port} on are too many"))
        })?;
        let config = SimConfig {
            host,
            port,
            speed: args.speed,
            seed: args.seed.wrapping_add(index.into()),
            web_root: args.web_root.clone(),
            max_upload_size: u64::from(args.max_upload_size) << 20,
            without_nodes: args.without_node.clone(),
            models: args.model.clone(),
            directory: args.directory.as_ref().map(|base| base.join(index.to_string())),
            ..SimConfig::default()
        };
        let sim = Sim::start(config).await.map_err(|error| named(host, port, &error))?;
        sims.push(sim);
    }
    Ok(sims)
}

fn named(host: IpAddr, port: u16, error: &io::Error) -> io::Error {
    let cure = match error.kind() {
        io::ErrorKind::AddrInUse => ": the port is in use; choose another with -p",
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot listen on {host}:{port}: {error}{cure}"))
}

/// Runs `comfygate sim` until SIGINT or SIGTERM.
pub fn run(args: Args) -> Exit {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("comfygate sim: cannot start: {error}");
            return Exit::Failed;
        }
    };
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> Exit {
    if let Some(root) = &args.web_root
        && !root.join("index.html").is_file()
    {
        eprintln!(
            "comfygate sim: --web-root {}: no index.html there; it wants the folder \
             comfyui_frontend_package/static of an unpacked comfyui-frontend-package",
            root.display()
        );
        return Exit::Usage;
    }
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("comfygate sim: cannot listen to signals");
        return Exit::Failed;
    };
    let sims = match start_farm(args.host, args.port, args.count, &args).await {
        Ok(sims) => sims,
        Err(error) => {
            eprintln!("comfygate sim: {error}");
            return Exit::Usage;
        }
    };
    for sim in &sims {
        println!("simulated ComfyUI on {}", sim.url());
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    for sim in sims {
        sim.stop().await;
    }
    Exit::Ok
}
