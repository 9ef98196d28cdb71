//! Everything the dashboard says, in every language it speaks, in one table.

use http::{HeaderMap, header};

use crate::admin::logins::cookie;

/// Remembers the language that somebody chose.
pub(super) const COOKIE: &str = "comfygate_lang";

/// A language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lang {
    /// English.
    En,
    /// Chinese, simplified.
    Zh,
}

impl Lang {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::En, Self::Zh];

    /// Its tag, as in `?lang=`.
    pub(super) fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Zh => "zh",
        }
    }

    /// Its tag for the page, from which browsers choose glyphs.
    pub(super) fn html(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Zh => "zh-Hans",
        }
    }

    /// Its own name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::En => "English",
            Self::Zh => "中文",
        }
    }

    /// The language of a tag such as `zh-CN`.
    pub(super) fn of_tag(tag: &str) -> Option<Self> {
        let primary = tag.split('-').next()?.trim();
        Self::ALL.into_iter().find(|lang| lang.tag().eq_ignore_ascii_case(primary))
    }

    /// The language of a request: chosen now, chosen before, what the browser prefers, English.
    pub(super) fn of(chosen: Option<&str>, headers: &HeaderMap) -> Self {
        let kept = || cookie(headers, COOKIE).and_then(Self::of_tag);
        let preferred = || {
            let line = headers.get(header::ACCEPT_LANGUAGE)?.to_str().ok()?;
            preferred(line)
        };
        chosen.and_then(Self::of_tag).or_else(kept).or_else(preferred).unwrap_or(Self::En)
    }
}

/// The language with the highest weight; of equal ones the first.
fn preferred(line: &str) -> Option<Lang> {
    let mut best: Option<(f32, Lang)> = None;
    for range in line.split(',').take(32) {
        let mut parts = range.split(';');
        let Some(lang) = parts.next().and_then(Lang::of_tag) else { continue };
        let weight = parts.find_map(|part| part.trim().strip_prefix("q="));
        let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        if weight > 0.0 && best.is_none_or(|(most, _)| weight > most) {
            best = Some((weight, lang));
        }
    }
    best.map(|(_, lang)| lang)
}

macro_rules! words {
    ($($word:ident $en:literal $zh:literal)*) => {
        /// Something the dashboard says.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Word { $($word),* }

        impl Word {
            /// All of them.
            pub(super) const ALL: &'static [Self] = &[$(Self::$word),*];

            /// Its name, by which the script asks for it.
            pub(super) fn key(self) -> &'static str {
                match self { $(Self::$word => stringify!($word)),* }
            }

            /// How a language says it.
            pub(super) fn say(self, lang: Lang) -> &'static str {
                match (self, lang) {
                    $((Self::$word, Lang::En) => $en, (Self::$word, Lang::Zh) => $zh),*
                }
            }
        }
    };
}

words! {
    Title "comfygate dashboard" "comfygate 控制台"
    Skip "Skip to the backends" "跳到后端列表"
    Language "Language" "语言"
    LogOut "Log out" "退出登录"
    LogIn "Log in" "登录"
    LogInHint "This gateway is protected by its admin token." "此网关受管理令牌保护。"
    Token "Admin token" "管理令牌"
    WrongToken "That is not the admin token." "管理令牌不正确。"
    Live "live" "实时"
    Connecting "connecting" "正在连接"
    Lost "connection lost, trying again" "连接已断开，正在重试"
    Glance "The farm at a glance" "集群概览"
    Healthy "Healthy" "健康"
    Queued "Queued" "排队"
    Running "Running" "运行中"
    Finished "Finished / min" "每分钟完成"
    WaitHalf "Wait, median" "等待中位数"
    WaitMost "Wait, p95" "等待 p95"
    Sessions "Sessions" "会话"
    Sockets "WebSockets" "WebSocket"
    Strategy "Strategy" "调度策略"
    Apply "Apply" "应用"
    Check "Check health now" "立即健康检查"
    Backends "Backends" "后端"
    BackendsCaption "Every backend with its state, its load and what can be done with it"
        "所有后端的状态、负载及可用操作"
    Name "Name" "名称"
    State "State" "状态"
    Queue "Queue" "队列"
    QueueHint "running + waiting" "运行 + 等待"
    Clients "Clients" "客户端"
    ClientsHint "sessions / sockets" "会话 / 连接"
    Calls "Calls" "请求数"
    Pace "Per prompt" "每任务耗时"
    Success "Success" "成功率"
    Memory "VRAM" "显存"
    MemoryHint "used / total" "已用 / 总量"
    Version "Version" "版本"
    Actions "Actions" "操作"
    Service "Service of" "服务状态："
    Enable "Enable" "启用"
    Drain "Drain" "排空"
    Disable "Disable" "停用"
    Remove "Remove" "移除"
    RemoveNow "At once" "立即移除"
    RemoveLater "When its last client is gone" "最后一个客户端离开后"
    NoBackends "There is no backend yet. Add one below." "还没有后端，请在下方添加。"
    Add "Add a backend" "添加后端"
    AddNow "Add" "添加"
    Address "Address" "地址"
    Weight "Weight" "权重"
    MaxQueue "Longest queue" "最大队列"
    TaskTypes "Task types" "任务类型"
    TaskTypesHint "separated by commas; empty: any" "以逗号分隔；留空表示全部"
    Backup "backup" "备用"
    LastHour "The last hour" "最近一小时"
    QueueChart "Prompts per backend" "各后端的任务数"
    FlowChart "Finished per minute" "每分钟完成数"
    WaitChart "Seconds waited" "等待秒数"
    NothingYet "Nothing to show yet" "暂无数据"
    Others "others" "其他"
    Median "median" "中位数"
    MinutesAgo "min ago" "分钟前"
    Now "now" "现在"
    Peak "peak" "峰值"
    Tasks "Tasks" "任务"
    TasksCaption "The newest tasks" "最新的任务"
    TaskId "Task" "任务"
    Caller "Caller" "调用者"
    Backend "Backend" "后端"
    Created "Created" "创建时间"
    Waited "Waited" "等待"
    Took "Took" "耗时"
    Error "Error" "错误"
    Cancel "Cancel" "取消"
    Filter "Show" "显示"
    All "all" "全部"
    NoTasks "No tasks" "没有任务"
    Events "Events" "事件"
    EventsCaption "The last changes of state" "最近的状态变化"
    NoEvents "Nothing has happened yet" "还没有事件"
    When "When" "时间"
    What "What" "内容"
    Came "added" "已添加"
    Gone "removed" "已移除"
    Done "Done." "完成。"
    Failed "That did not work" "操作失败"
    Back "Back to the dashboard" "返回控制台"
    OutOfDate "This page is out of date; it will be loaded again." "页面已过期，将重新加载。"
    Unreachable "The gateway cannot be reached." "无法连接到网关。"
    StateUnknown "unknown" "未知"
    StateUp "up" "正常"
    StateDown "down" "故障"
    StateSuspect "suspect" "可疑"
    StateEjected "ejected" "已隔离"
    StateDrain "draining" "排空中"
    StateDisabled "disabled" "已停用"
    StateQueued "queued" "排队"
    StateRunning "running" "运行中"
    StateCompleted "completed" "已完成"
    StateFailed "failed" "失败"
    StateCancelled "cancelled" "已取消"
}

impl Word {
    /// The word for a state of a backend or a task, as the API names it.
    pub(super) fn of_state(state: &str) -> Self {
        match state {
            "up" => Self::StateUp,
            "down" => Self::StateDown,
            "suspect" => Self::StateSuspect,
            "ejected" => Self::StateEjected,
            "drain" => Self::StateDrain,
            "disabled" => Self::StateDisabled,
            "queued" => Self::StateQueued,
            "running" => Self::StateRunning,
            "completed" => Self::StateCompleted,
            "failed" => Self::StateFailed,
            "cancelled" => Self::StateCancelled,
            _ => Self::StateUnknown,
        }
    }
}

/// The words that the script says itself, as JSON.
pub(super) fn for_script(lang: Lang) -> String {
    let words = Word::ALL.iter().map(|word| (word.key().to_owned(), word.say(lang).into()));
    serde_json::Value::Object(words.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_said_in_every_language() {
        let is_chinese = |c: char| ('\u{4e00}'..='\u{9fff}').contains(&c);
        for &word in Word::ALL {
            let (en, zh) = (word.say(Lang::En), word.say(Lang::Zh));
            assert!(!en.trim().is_empty() && !en.contains(is_chinese), "{word:?}");
            let a_name = word == Word::Sockets;
            assert!(a_name || zh.contains(is_chinese), "{word:?}");
        }
        for lang in Lang::ALL {
            let words: serde_json::Value = serde_json::from_str(&for_script(lang)).unwrap();
            assert_eq!(words.as_object().unwrap().len(), Word::ALL.len());
        }
    }

    #[test]
    fn the_script_asks_for_no_word_that_is_not_there() {
        let script = include_str!("dashboard.js");
        let asked: Vec<&str> =
            script.split("word(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(asked.len() > 5, "{asked:?}");
        for key in asked {
            assert!(Word::ALL.iter().any(|word| word.key() == key), "{key}");
        }
    }

    #[test]
    fn the_browsers_preference_decides_unless_somebody_chose() {
        let headers = |lines: &[(header::HeaderName, &str)]| -> HeaderMap {
            lines.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
        };
        let accept = |value| headers(&[(header::ACCEPT_LANGUAGE, value)]);
        for (line, lang) in [
            ("zh-CN,zh;q=0.9,en;q=0.8", Lang::Zh),
            ("en-US,en;q=0.9,zh;q=0.8", Lang::En),
            ("fr, zh;q=0.2", Lang::Zh),
            ("en;q=0, zh;q=0.1", Lang::Zh),
            ("en;q=x, ZH-Hant", Lang::Zh),
            ("fr", Lang::En),
            ("", Lang::En),
        ] {
            assert_eq!(Lang::of(None, &accept(line)), lang, "{line}");
        }
        let kept =
            headers(&[(header::ACCEPT_LANGUAGE, "en"), (header::COOKIE, "x=y; comfygate_lang=zh")]);
        assert_eq!(Lang::of(None, &kept), Lang::Zh);
        assert_eq!(Lang::of(Some("en"), &kept), Lang::En);
        assert_eq!(Lang::of(Some("xx"), &kept), Lang::Zh);
    }
}
