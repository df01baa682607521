# The monitor: the first process of a sandbox whose language is not Python.
#
#   perl monitor.pl PATTERN COMMAND...
#
# Owns: the monitor's half of PROTOCOL.md. It starts the runner, keeps the tail of what the model
# prints, reaps orphans, and says how the runner ended. PATTERN is how the language says that it
# found no memory: an end with such last words is told as one for memory.
# Never: is trusted; loads a module (each would cost milliseconds of every cold start). Perl is
# part of every root folder: Debian's essential set has it.
# Read next: PROTOCOL.md.

use strict;
use warnings;

my $SOCKET = $ENV{APPLIANCE_SOCKET} || '/run/app/a.sock';
my $TAIL_BYTES = 60 * 1024;
my $LAST_BYTES = 8 * 1024;
my $FLUSH_S = 0.1;
my $IDLE_S = 0.5;     # a signal that came just before select() is noticed this much later
my $ENDING_S = 0.05;  # the same once all output was closed: the runner is about to end
my ($AF_UNIX, $SOCK_STREAM, $WNOHANG) = (1, 1, 1);
my ($F_SETFL, $O_NONBLOCK, $F_SETPIPE_SZ, $PIPE_BYTES) = (4, 04000, 1031, 1 << 20);

my ($pattern, @command) = @ARGV;
my ($link, $runner, $out, $heard, $last, $flushed) = (undef, 0, '', '', '', 0);
my @tails;

sub frame { my ($header, $body) = @_; return pack('NQ>', length $header, length $body) . $header . $body }

# Connect and say HELLO.
sub greet {
    socket($link, $AF_UNIX, $SOCK_STREAM, 0) or die "socket: $!\n";
    connect($link, pack('SZ*', $AF_UNIX, $SOCKET)) or die "connect: $!\n";
    syswrite $link, frame('{"type":"HELLO","proto":1,"role":"monitor","runtime":"monitor",'
        . '"version":"1","concurrency":1}', '');
}

# Start the runner with its output in two pipes; only those and its own connection are its.
sub start {
    for my $stream ('stdout', 'stderr') {
        pipe(my $read, my $write) or die "pipe: $!\n";
        fcntl $write, $F_SETPIPE_SZ, $PIPE_BYTES;
        push @tails, { stream => $stream, read => $read, write => $write, data => '', dropped => 0 };
    }
    $runner = fork;
    die "fork: $!\n" unless defined $runner;
    if ($runner == 0) {
        open STDIN, '<', '/dev/null';
        open STDOUT, '>&', $tails[0]{write};
        open STDERR, '>&', $tails[1]{write};
        exec { $command[0] } @command or print STDERR "$command[0]: $!\n";
        exit 127;
    }
    for my $tail (@tails) {
        close delete $tail->{write};
        fcntl $tail->{read}, $F_SETFL, $O_NONBLOCK;
    }
}

# Read what a stream holds, at most $reads times; its end closes it.
sub drain {
    my ($tail, $reads) = @_;
    while ($tail->{read} && $reads-- > 0) {
        my $got = sysread $tail->{read}, my $piece, 256 * 1024;
        return if !defined $got;    # nothing there now
        if (!$got) { close delete $tail->{read}; return }
        $tail->{data} .= $piece;
        $last = substr $last . $piece, -$LAST_BYTES if $tail->{stream} eq 'stderr';
        my $over = length($tail->{data}) - $TAIL_BYTES;
        if ($over > 0) {
            $tail->{dropped} += $over;
            substr $tail->{data}, 0, $over, '';
        }
    }
}

# The pending output as LOG frames; empties the tails.
sub logs {
    my $frames = '';
    for my $tail (@tails) {
        next unless length $tail->{data} || $tail->{dropped};
        $frames .= frame(qq({"type":"LOG","stream":"$tail->{stream}","dropped":$tail->{dropped}}),
            $tail->{data});
        ($tail->{data}, $tail->{dropped}) = ('', 0);
    }
    return $frames;
}

# Write what the socket takes now.
sub send_some {
    return unless length $out;
    my $sent = syswrite $link, $out;
    substr $out, 0, $sent, '' if $sent;
}

# Answer the host's PINGs, each after the output printed before it.
sub answer {
    my $got = sysread $link, my $piece, 4096;
    return if !defined $got;
    exit 0 if !$got;    # the appliance is gone: so is everything here
    $heard .= $piece;
    while (length $heard >= 12) {
        my $size = 12 + unpack 'N', $heard;
        return if length $heard < $size;
        substr $heard, 0, $size, '';
        drain($_, 16) for @tails;
        $out .= logs() . frame('{"type":"PONG","id":"logs"}', '');
        $flushed = now();
    }
}

# Seconds that only go forward: the time of day may jump.
sub now { open my $file, '<', '/proc/uptime' or return time; return (split ' ', <$file>)[0] }

# Collect ended processes; the runner's status once it is among them.
sub reap {
    while ((my $pid = waitpid -1, $WNOHANG) > 0) { return $? if $pid == $runner }
    return undef;
}

# Work until the runner ends; its status.
sub watch {
    fcntl $link, $F_SETFL, $O_NONBLOCK;
    while (1) {
        my $status = reap();
        return $status if defined $status;
        my $pending = length $out || grep { length $_->{data} || $_->{dropped} } @tails;
        my ($wanted, $writable) = ('', '');
        vec($wanted, fileno $_->{read}, 1) = 1 for grep { $_->{read} } @tails;
        vec($wanted, fileno $link, 1) = 1;
        vec($writable, fileno $link, 1) = 1 if length $out;
        my $wait = $pending ? $FLUSH_S : (grep { $_->{read} } @tails) ? $IDLE_S : $ENDING_S;
        my $found = select my $ready = $wanted, $writable, undef, $wait;
        next if $found < 0;
        for my $tail (grep { $_->{read} } @tails) {
            drain($tail, 4) if vec $ready, fileno $tail->{read}, 1;
        }
        answer() if vec $ready, fileno $link, 1;
        if (!length $out && now() - $flushed >= $FLUSH_S) {
            $out = logs();
            $flushed = now();
        }
        send_some();
    }
}

# Send the rest of the output and EXIT.
sub finish {
    my ($code) = @_;
    fcntl $link, $F_SETFL, 0;
    drain($_, 64) for @tails;
    my $kind = $code != 0 && $pattern ne '' && $last =~ /$pattern/ ? 'memory' : '';
    $out .= logs() . frame(qq({"type":"EXIT","code":$code,"kind":"$kind"}), '');
    local $SIG{ALRM} = sub { exit 1 };
    alarm 1;
    while (length $out) {
        my $sent = syswrite $link, $out;
        last unless $sent;
        substr $out, 0, $sent, '';
    }
    shutdown $link, 1;
}

$SIG{CHLD} = sub { };      # only to interrupt select()
$SIG{PIPE} = 'IGNORE';
greet();
start();
my $status = watch();
my $signal = $status & 127;
finish($signal ? -$signal : $status >> 8);
exit($signal ? 128 + $signal : $status >> 8);
