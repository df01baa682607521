# The builder of languages that have none of their own: runs one script inside a sandbox and streams
# what it made out as a tar.
#
#   perl native_builder.pl RUNTIME COMMAND...
#
# Owns: the guest half of BUILD in PROTOCOL.md. COMMAND installs from /data into /tmp/out; its output
# is the build's log; a line "error: ..." says why it ended non-zero.
# Never: has a network; loads a module.
# Read next: node_build.sh, ruby_build.sh, r_build.sh.

use strict;
use warnings;

my ($AF_UNIX, $SOCK_STREAM) = (1, 1);
my $SOCKET = $ENV{APPLIANCE_SOCKET} || '/run/app/a.sock';
my ($runtime, @command) = @ARGV;
my $link;

sub send_frame {
    my ($header, $body) = @_;
    $body = '' unless defined $body;
    my $data = pack('NQ>', length $header, length $body) . $header . $body;
    my $at = 0;
    while ($at < length $data) {
        my $sent = syswrite $link, $data, 1 << 20, $at;
        exit 0 unless $sent;
        $at += $sent;
    }
}

sub receive_bytes {
    my ($size) = @_;
    my $data = '';
    while (length $data < $size) {
        exit 0 unless sysread $link, $data, $size - length $data, length $data;
    }
    return $data;
}

sub quoted {
    my ($text) = @_;
    $text =~ s/[^\x20-\x7e]/?/g;
    $text =~ s/(["\\])/\\$1/g;
    return qq("$text");
}

# Report why there is nothing to send, and wait to be ended.
sub fail {
    my ($detail, @lines) = @_;
    my $trace = join ',', map { quoted(substr $_, 0, 300) } @lines > 30 ? @lines[-30 .. -1] : @lines;
    send_frame('{"type":"ERR","id":"","kind":"build","detail":' . quoted(substr $detail, 0, 1000)
        . ',"trace":[' . $trace . ']}');
    receive_bytes(1);
    exit 0;
}

# Run the command; its output goes out as LOG, its last lines are kept.
sub run {
    my $child = open(my $said, '-|');
    fail("fork: $!") unless defined $child;
    if ($child == 0) {
        open STDERR, '>&', \*STDOUT;
        open STDIN, '<', '/dev/null';
        exec { $command[0] } @command or print "error: $command[0]: $!\n";
        exit 127;
    }
    my ($rest, @lines) = ('');
    while (sysread $said, my $piece, 32768) {
        send_frame('{"type":"LOG","stream":"stdout","dropped":0}', $piece);
        $rest .= $piece;
        while ($rest =~ s/^([^\n]*)\n//) { push @lines, $1 }
        splice @lines, 0, -200 if @lines > 200;
        $rest = '' if length $rest > 65536;
    }
    push @lines, $rest if $rest ne '';
    close $said;
    return if $? == 0;
    my ($why) = grep { /^error: / } reverse @lines;
    $why = defined $why ? $why =~ s/^error: //r : $lines[-1] || 'the installer failed';
    fail($why, @lines);
}

socket($link, $AF_UNIX, $SOCK_STREAM, 0) or die "socket: $!\n";
connect($link, pack('SZ*', $AF_UNIX, $SOCKET)) or die "connect: $!\n";
send_frame(qq({"type":"HELLO","proto":1,"role":"runner","runtime":"$runtime","version":"1",)
    . '"concurrency":1}');
my ($header_bytes, $body_bytes) = unpack 'NQ>', receive_bytes(12);
receive_bytes($header_bytes + $body_bytes);
mkdir '/tmp/out';
run();
open my $tar, '-|', 'tar', '--format=pax', '--hard-dereference', '-C', '/tmp/out', '-cf', '-', '.'
    or fail("tar: $!");
while (sysread $tar, my $piece, 1 << 19) {
    send_frame('{"type":"CHUNK","last":false}', $piece);
}
close $tar or fail('what was installed cannot be packed');
send_frame('{"type":"CHUNK","last":true}');
receive_bytes(1);    # wait to be ended
