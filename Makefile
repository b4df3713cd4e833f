# For those without a package: `make`, then `make install DESTDIR=… prefix=/usr`. `make deb` makes the Debian package.
prefix ?= /usr
sbindir = $(DESTDIR)$(prefix)/sbin
share = $(DESTDIR)$(prefix)/share
unitdir = $(DESTDIR)$(prefix)/lib/systemd/system
TARGET ?= target
GENERATED = target/packaging
PROGRAMS = traffic_cop traffic_manager traffic_server

all: programs generated

programs:
	cargo build --release --locked --target-dir $(TARGET) -p traffic

generated:
	cargo run --locked --target-dir $(TARGET) -q -p packaging -- $(GENERATED)

deb: programs generated
	CARGO_TARGET_DIR=$(abspath $(TARGET)) cargo deb $(DEBFLAGS) --no-build --locked -p traffic

install:
	install -d $(sbindir) $(share)/man/man5 $(share)/man/man8 $(share)/bash-completion/completions \
	  $(share)/zsh/vendor-completions $(share)/fish/vendor_completions.d $(share)/doc/traffic/monitoring $(share)/doc/traffic/drills $(unitdir) \
	  $(DESTDIR)$(prefix)/lib/sysusers.d $(DESTDIR)$(prefix)/lib/tmpfiles.d $(DESTDIR)/etc/traffic
	install -m 0755 $(PROGRAMS:%=$(TARGET)/release/%) $(sbindir)
	install -m 0644 $(GENERATED)/man/*.8 $(share)/man/man8
	install -m 0644 $(GENERATED)/man/*.5 $(share)/man/man5
	for p in $(PROGRAMS); do \
	  install -m 0644 $(GENERATED)/completions/$$p $(share)/bash-completion/completions/ && \
	  install -m 0644 $(GENERATED)/completions/_$$p $(share)/zsh/vendor-completions/ && \
	  install -m 0644 $(GENERATED)/completions/$$p.fish $(share)/fish/vendor_completions.d/ || exit 1; \
	done
	install -m 0644 README.md CHANGELOG.md docs/*.md $(share)/doc/traffic
	install -m 0644 docs/monitoring/* $(share)/doc/traffic/monitoring
	install -m 0644 docs/drills/* $(share)/doc/traffic/drills
	sed 's|/usr/sbin/|$(prefix)/sbin/|' systemd/traffic.service >$(unitdir)/traffic.service
	install -m 0644 systemd/traffic.socket $(unitdir)
	install -m 0644 systemd/sysusers.d/traffic.conf $(DESTDIR)$(prefix)/lib/sysusers.d
	install -m 0644 systemd/tmpfiles.d/traffic.conf $(DESTDIR)$(prefix)/lib/tmpfiles.d
	[ -e $(DESTDIR)/etc/traffic/traffic.toml ] || install -m 0640 $(GENERATED)/traffic.toml $(DESTDIR)/etc/traffic

.PHONY: all programs generated deb install
