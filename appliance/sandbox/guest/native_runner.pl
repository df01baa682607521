# The runner's first stage for languages that cannot speak to a unix socket before they have a
# model: it connects, unpacks the artifact, and becomes (or starts) what runs it.
#
#   perl native_runner.pl [--relay|--compile] RUNTIME COMMAND...
#
# Owns: HELLO, LOAD and the tar of PROTOCOL.md. Then COMMAND runs in the artifact's folder with the
# connection as its standard input, to answer READY and all that follows; APPLIANCE_ENTRY,
# APPLIANCE_PATH and APPLIANCE_DEPS are what LOAD said (APPLIANCE_TYPE of its options; APPLIANCE_CALLS is
# there where the model declares calls). Shared libraries are found in its lib/.
#   --relay    COMMAND has pipes: standard input, and the descriptor APPLIANCE_OUT to answer on
#   --compile  COMMAND makes the file APPLIANCE_OUT, or ends non-zero having said why; each REQ is
#              answered with that file
# Never: is trusted; loads a module.
# Read next: PROTOCOL.md, appliance.hpp, JavaRunner.java, r_runner.R.

use strict;
use warnings;

my $SOCKET = $ENV{APPLIANCE_SOCKET} || '/run/app/a.sock';
my ($AF_UNIX, $SOCK_STREAM, $F_SETFD, $F_SETPIPE_SZ, $PIPE_BYTES) = (1, 1, 2, 1031, 1 << 20);
my $COMPILED = '/tmp/compiled';

my $mode = @ARGV && $ARGV[0] =~ /^--(relay|compile)$/ ? $1 : '';
shift @ARGV if $mode;
my ($runtime, @command) = @ARGV;
my $link;
my ($pending, $is_last) = ('', 0);    # of the CHUNKs after LOAD

# ---------------------------------------------------------------- frames

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

sub receive_frame {
    my ($header_bytes, $body_bytes) = unpack 'NQ>', receive_bytes(12);
    return (receive_bytes($header_bytes), receive_bytes($body_bytes));
}

# A text member of a header the appliance wrote.
sub member {
    my ($header, $name) = @_;
    my ($text) = $header =~ /"\Q$name\E":\s*"((?:[^"\\]|\\.)*)"/;
    return '' unless defined $text;
    $text =~ s/\\(u([0-9a-fA-F]{4})|.)/defined $2 ? chr hex $2 : $1 eq 'n' ? "\n" : $1/ge;
    return $text;
}

# A text as a JSON string; bytes that are no ASCII become question marks.
sub quoted {
    my ($text) = @_;
    $text =~ s/[^\x20-\x7e]/?/g;
    $text =~ s/(["\\])/\\$1/g;
    return qq("$text");
}

# Report a failure of LOAD and wait to be ended.
sub fail {
    my ($kind, $detail, @trace) = @_;
    my $lines = join ',', map { quoted(substr $_, 0, 400) } @trace > 30 ? @trace[-30 .. -1] : @trace;
    send_frame('{"type":"ERR","id":"","kind":"' . $kind . '","detail":'
        . quoted(substr $detail, 0, 1000) . ',"trace":[' . $lines . ']}');
    receive_bytes(1);
    exit 0;
}

# ---------------------------------------------------------------- the tar stream

# Up to $size bytes; fewer only at the end.
sub take {
    my ($size) = @_;
    while (length $pending < $size && !$is_last) {
        my ($header, $body) = receive_frame();
        $is_last = $header =~ /"last":\s*true/;
        $pending .= $body;
    }
    return substr $pending, 0, $size, '';
}

sub number_from_field {
    my ($field) = @_;
    if (ord($field) & 0x80) { return unpack 'Q>', substr $field, -8 }
    return $field =~ /([0-7]+)/ ? oct $1 : 0;
}

sub make_folders {
    my ($path) = @_;
    my $at = '';
    for my $part (split m{/}, $path) {
        $at .= "$part/";
        mkdir $at unless -d $at;
    }
}

sub write_member {
    my ($folder, $path, $kind, $size) = @_;
    my @parts = grep { $_ ne '' && $_ ne '.' } split m{/}, $path;
    if ($path =~ m{^/} || (grep { $_ eq '..' } @parts) || $kind !~ /^[0\x005]$/) {
        fail('input', "The artifact holds an unsafe or special file: '$path'.");
    }
    my $name = join '/', $folder, @parts;
    if ($kind eq '5') { make_folders($name); return }
    make_folders($name =~ s{/[^/]*$}{}r);
    open my $file, '>:raw', $name or fail('input', "The artifact's '$path' cannot be written: $!");
    my $left = $size;
    while ($left > 0) {
        my $piece = take($left < 1 << 20 ? $left : 1 << 20);
        fail('input', 'The artifact ends in the middle of a file.') if $piece eq '';
        my $written = syswrite $file, $piece;
        fail('input', "The artifact's '$path' cannot be written: $!")
            unless defined $written && $written == length $piece;
        $left -= length $piece;
    }
    close $file;
    chmod 0755, $name if $path =~ m{^(?:\./)?bin/};
    take(-$size % 512);
}

# Write the regular files and folders of the tar (ustar, pax, GNU names).
sub unpack_artifact {
    my ($folder) = @_;
    my ($path, $size_given);
    while (1) {
        my $head = take(512);
        last if length $head < 512 || $head !~ /[^\0]/;
        my $kind = substr $head, 156, 1;
        my $size = number_from_field(substr $head, 124, 12);
        if ($kind =~ /^[xgL]$/) {
            my $data = substr take($size + -$size % 512), 0, $size;
            if ($kind eq 'L') { $path = $data =~ s/\0+$//r }
            while ($kind eq 'x' && $data =~ s/^(\d+) //) {
                my $record = substr $data, 0, $1 - length($1) - 1, '';
                my ($key, $value) = $record =~ /^([^=]*)=(.*)\n$/s or last;
                $path = $value if $key eq 'path';
                $size_given = $value if $key eq 'size';
            }
            next;
        }
        my ($name) = unpack 'Z100', $head;
        if (substr($head, 257, 6) eq "ustar\0" && substr($head, 345, 1) ne "\0") {
            $name = unpack('Z155', substr $head, 345) . "/$name";
        }
        write_member($folder, defined $path ? $path : $name, $kind,
            defined $size_given ? $size_given : $size);
        ($path, $size_given) = (undef, undef);
    }
    while (take(1 << 20) ne '') { }
}

# ---------------------------------------------------------------- what runs the model

# Carry bytes between the connection and a process that has pipes; end as it ends.
sub relay {
    pipe(my $in_read, my $in_write) and pipe(my $out_read, my $out_write) or die "pipe: $!\n";
    fcntl $_, $F_SETPIPE_SZ, $PIPE_BYTES for $in_write, $out_write;
    $SIG{CHLD} = sub { };    # only to interrupt select()
    my $child = fork;
    die "fork: $!\n" unless defined $child;
    if ($child == 0) {
        open STDIN, '<&', $in_read;
        fcntl $out_write, $F_SETFD, 0;
        $ENV{APPLIANCE_OUT} = fileno $out_write;
        become(@command);
    }
    close $in_read;
    close $out_write;
    $SIG{PIPE} = 'IGNORE';
    while (1) {
        if (waitpid($child, 1) == $child) { end_as($?) }
        my $wanted = '';
        vec($wanted, fileno $_, 1) = 1 for $link, $out_read;
        next if select(my $ready = $wanted, undef, undef, 1) <= 0;
        carry($out_read, $link) or waitpid($child, 0) == $child && end_as($?)
            if vec $ready, fileno $out_read, 1;
        carry($link, $in_write) or exit 0 if vec $ready, fileno $link, 1;
    }
}

sub carry {
    my ($from, $to) = @_;
    my $got = sysread $from, my $data, 1 << 20;
    return 0 unless $got;
    my $at = 0;
    while ($at < $got) {
        my $sent = syswrite $to, $data, $got - $at, $at;
        last unless $sent;    # its reader is gone: the loop sees why
        $at += $sent;
    }
    return 1;
}

sub end_as {
    my ($status) = @_;
    if (my $signal = $status & 127) { $SIG{$_} = 'DEFAULT' for 'PIPE'; kill $signal, $$; sleep 1 }
    exit $status >> 8;
}

sub become {
    exec { $_[0] } @_ or print STDERR "$_[0]: $!\n";
    exit 127;
}

# Word size and processor of a program as its ELF header has them; nothing of a script.
sub machine {
    open my $file, '<:raw', $_[0] or return '';
    my ($mark, $class, $processor) = unpack 'a4 C x13 v', do { local $/ = \20; <$file> } || '';
    return defined $processor && $mark eq "\x7fELF" ? "$class.$processor" : '';
}

# Run the compiler, then answer each REQ with what it made.
sub compile {
    $ENV{APPLIANCE_OUT} = $COMPILED;
    open my $said, '-|', "exec 2>&1; exec $command[0] $command[1]" or fail('raised', "$command[0]: $!");
    my @lines = <$said>;
    chomp @lines;
    close $said;
    if ($? || !-f $COMPILED) {
        my ($first) = grep { /\berror\b/i } @lines;
        fail('raised', $first || $lines[-1] || 'the compiler failed', @lines);
    }
    send_frame('{"type":"READY","compute_us":0}');
    while (1) {
        my ($header) = receive_frame();
        my ($id) = $header =~ /"id":\s*("(?:[^"\\]|\\.)*")/;
        open my $file, '<:raw', $COMPILED or exit 1;
        my $body = do { local $/; <$file> };
        send_frame(qq({"type":"RES","id":$id,"content_type":"application/octet-stream","compute_us":0}),
            $body);
    }
}

socket($link, $AF_UNIX, $SOCK_STREAM, 0) or die "socket: $!\n";
connect($link, pack('SZ*', $AF_UNIX, $SOCKET)) or die "connect: $!\n";
send_frame(qq({"type":"HELLO","proto":1,"role":"runner","runtime":"$runtime","version":"1",)
    . '"concurrency":1}');
my ($load) = receive_frame();
my $folder = member($load, 'path') || '/model';
unpack_artifact($folder);
chdir $folder or fail('input', "$folder: $!");
$ENV{APPLIANCE_ENTRY} = member($load, 'entry');
$ENV{APPLIANCE_PATH} = $folder;
$ENV{APPLIANCE_DEPS} = member($load, 'deps');
$ENV{APPLIANCE_CALLS} = 1 if $load =~ /"calls":\s*true/;
$ENV{APPLIANCE_TYPE} = $1 if $load =~ /"options":\s*\{[^{}]*"type":\s*"([\w.]+)"/;
if (my $proxy = member($load, 'proxy')) {
    @ENV{qw(http_proxy https_proxy HTTP_PROXY HTTPS_PROXY)} = ($proxy) x 4;
    @ENV{qw(no_proxy NO_PROXY)} = ('localhost,127.0.0.1,::1') x 2;
}
$ENV{LD_LIBRARY_PATH} = join ':', "$folder/lib", $ENV{LD_LIBRARY_PATH} || () if -d "$folder/lib";
compile() if $mode eq 'compile';
relay() if $mode eq 'relay';
fail('entry', "The artifact has no '$command[0]'.") unless -x $command[0];
my ($ours, $theirs) = (machine('/proc/self/exe'), machine($command[0]));
fail('entry', "'$command[0]' is built for another kind of machine: ELF $theirs, here it is $ours.")
    if $theirs ne '' && $theirs ne $ours;
open STDIN, '<&', $link or die "dup: $!\n";
become(@command);
