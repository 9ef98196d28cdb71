//! Driving the stock ComfyUI page through what it offers to its extensions as `window.app`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use comfygate::sim::image_of_seed;
use serde_json::Value;

use crate::support::chrome::Chrome;

/// True once the page has its socket, its nodes and the workflow it starts with (an empty one on
/// the first visit); what is loaded before that would be replaced.
const READY: &str = "window.app?.vueAppReady && app.api.socket?.readyState === WebSocket.OPEN
    && Boolean(LiteGraph.registered_node_types.PacedImage)
    && Boolean(app.extensionManager?.workflow?.activeWorkflow)";

/// A workflow of one `PacedImage` and one `SaveImage`.
#[derive(Clone, Copy)]
pub(crate) struct Workflow {
    pub(crate) name: &'static str,
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) steps: u32,
}

impl Chrome {
    /// Goes to a page and waits until it works.
    pub(crate) async fn open_page(&self, url: &str) {
        self.client.goto(url).await.unwrap();
        self.until(READY).await;
    }

    /// Loads a workflow and presses Run, so to speak.
    pub(crate) async fn queue(&self, workflow: Workflow) {
        let Workflow { name, seed, seconds, steps } = workflow;
        self.run(&format!(
            "window.seen = [];
             for (const type of ['executing', 'progress', 'b_preview', 'execution_error'])
                 app.api.addEventListener(type, ({{detail}}) =>
                     seen.push([type, type === 'progress' ? detail.value : null]));
             await app.loadApiJson({{
                 1: {{class_type: 'PacedImage', inputs: {{seconds: {seconds}, steps: {steps},
                     seed: {seed}, fail_at: -1, preview: true}}}},
                 2: {{class_type: 'SaveImage',
                     inputs: {{images: ['1', 0], filename_prefix: '{name}'}}}},
             }}, '{name}');
             await app.queuePrompt(0, 1);"
        ))
        .await;
    }

    /// Waits until the page shows the workflow's image and checks that it is the right one, and
    /// that progress and previews came before it.
    pub(crate) async fn shows_image_of(&self, workflow: Workflow) {
        let image = "app.graph.nodes.find(node => node.type === 'SaveImage')?.imgs?.[0]";
        self.until(&format!("{image}?.naturalWidth === 64")).await;
        let source = self.until(&format!("{image}.src")).await;
        let name = format!("filename={}_00001_.png", workflow.name);
        assert!(source.as_str().unwrap().contains(&name), "{source}");

        let bytes = self
            .run(&format!(
                "const reply = await fetch({image}.src);
                 const bytes = new Uint8Array(await reply.arrayBuffer());
                 return btoa(String.fromCharCode(...bytes));"
            ))
            .await;
        let bytes = STANDARD.decode(bytes.as_str().unwrap()).unwrap();
        assert!(bytes == image_of_seed(workflow.seed), "another image is shown");

        let seen = self.until("seen").await;
        let seen = seen.as_array().unwrap();
        let of = |kind: &str| -> Vec<u64> {
            let same = seen.iter().filter(|event| event[0] == kind);
            same.map(|event| event[1].as_u64().unwrap_or_default()).collect()
        };
        let steps: Vec<u64> = (1..=workflow.steps.into()).collect();
        assert_eq!(of("progress"), steps, "{seen:?}");
        assert_eq!(of("b_preview").len(), steps.len(), "{seen:?}");
        assert!(of("execution_error").is_empty(), "{seen:?}");
    }

    /// The backend that answers this page's own requests.
    pub(crate) async fn backend_of_page(&self) -> String {
        let name = self
            .run(
                "const reply = await app.api.fetchApi('/system_stats');
                 return reply.headers.get('x-comfygate-backend');",
            )
            .await;
        match name {
            Value::String(name) => name,
            other => panic!("no backend's name: {other}"),
        }
    }
}
