//! `traffic_manager import` with files as people have them: what it prints is a configuration, and runs.

mod common;

use common::jobs::*;
use common::*;

const SUPERVISORD: &str = r#"
; supervisor config file

[unix_http_server]
file=/var/run/supervisor.sock   ; (the path to the socket file)
chmod=0700                       ; sockef file mode (default 0700)

[supervisord]
logfile=/var/log/supervisor/supervisord.log ; (main log file)
pidfile=/var/run/supervisord.pid
childlogdir=/var/log/supervisor
environment=STAGE="production"

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix:///var/run/supervisor.sock

[program:web]
command=/bin/sh -c "echo %(program_name)s $STAGE \"$GREETING\"; exec sleep 1000"
directory=/tmp
autostart=true
autorestart=true
startsecs=0
startretries=3
stopwaitsecs=5
redirect_stderr=true
stdout_logfile=/dev/stdout
stdout_logfile_maxbytes=0
environment=GREETING="hello, world",
    PATH="/usr/bin:/bin:%(here)s/bin"

[program:celery]
command=celery -A proj worker --concurrency=10 -n worker%(process_num)s
process_name=%(program_name)s_%(process_num)02d
numprocs=2
autostart=false
user=nobody
stdout_logfile=/var/log/celery/worker.log
stderr_logfile=/var/log/celery/error.log
stopasgroup=true
priority=998

[group:all]
programs=web,celery

[include]
files = /etc/supervisor/conf.d/*.conf
"#;

#[test]
fn what_was_supervisords_is_a_configuration_and_runs() {
    let mut s = Suite::new("");
    let file = s.path("supervisord.conf");
    std::fs::write(&file, SUPERVISORD).unwrap();
    let run = |args: &[&str]| {
        let mut c = clean(MANAGER);
        c.args(args);
        output(c)
    };
    let o = run(&["import", file.to_str().unwrap()]);
    let toml = expect_code(&o, 0);
    for said in [
        "[unix_http_server]",
        "pidfile",
        "all was web,celery",
        "conf.d/*.conf",
        "priority = 998",
        "stopasgroup",
    ] {
        assert!(toml.lines().any(|l| l.starts_with('#') && l.contains(said)), "{said} isn't said: {toml}");
    }
    config(&s, &toml);
    let checked = expect_code(&s.run(MANAGER, &["check-config"]), 0);
    assert!(
        checked.contains("job celery-1 x1: celery -A proj worker --concurrency=10 -n worker1"),
        "{checked}"
    );
    let user = checked.lines().find(|l| l.contains("user ") && l.contains("\"nobody\""));
    assert!(user.is_some_and(|l| l.contains("# file, line ")), "{checked}");
    s.start();
    told(&s, &["wait-ready", "web"]);
    s.wait(0, &["job=web", "web production hello, world"]);
    assert_eq!(told(&s, &["list", "--names"]), "web\ncelery-0\ncelery-1\n");
    s.stop();
    // who completes a line needn't know that nobody is there
    assert_eq!(told(&s, &["list", "--names"]), "");
}

#[test]
fn what_was_in_a_procfile_runs_too_and_what_is_none_is_named_with_its_line() {
    let mut s = Suite::new("");
    let file = s.path("Procfile");
    std::fs::write(
        &file,
        "# the app\nrelease: test -d .\nweb: echo on $PORT && exec sleep 1000\nclock:  sleep 1000\n",
    )
    .unwrap();
    let import = |path: &std::path::Path| {
        let mut c = clean(MANAGER);
        c.arg("import").arg(path);
        output(c)
    };
    config(&s, &expect_code(&import(&file), 0));
    expect_code(&s.run(MANAGER, &["check-config"]), 0);
    s.start();
    told(&s, &["wait-ready", "clock"]);
    s.wait(0, &["job=web", "on 5100"]);
    assert_eq!(workers(&s, "release")[0]["state"], "finished");
    s.stop();
    for (text, said) in [
        ("[program:x]\ncommand=true\n oops\nnonsense\n", ":4: \"nonsense\" is no \"key = value\""),
        ("web: x\n\nno colon here\n", ":3: \"no colon here\" is no \"name: command\""),
        ("", ":1: nothing is in it"),
    ] {
        std::fs::write(&file, text).unwrap();
        let out = expect_code(&import(&file), 78);
        assert!(out.contains(&format!("{}{said}", file.display())), "{out}");
    }
    std::fs::write(&file, vec![b'x'; 2 << 20]).unwrap();
    assert!(expect_code(&import(&file), 78).contains("larger than"));
    assert!(expect_code(&import(&s.path("nowhere")), 78).contains("cannot be opened"));
}
