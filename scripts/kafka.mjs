import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  createWriteStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { clearTimeout } from 'node:timers';

/*
 * A real Apache Kafka on this machine, for trials and for tests: one node, broker and controller in one (KRaft),
 * from the released jars, on free loopback ports. Needs Java 17 and, the first time, Maven; no Docker. Where those are
 * missing and Docker is not, the same release runs in a container (docker/kafka.yml).
 *
 *   npm run kafka      prints KAFKA_BROKERS=host:port on a line of its own when it is ready; Ctrl-C ends it
 *
 * KAFKA_VERSION      which release; see DEFAULT_VERSION
 * KAFKA_CACHE_DIR    where the jars are kept; default ~/.cache/colloquy
 * KAFKA_PORT         a port instead of any free one
 * KAFKA_DATA_DIR     where the broker keeps its data, which then stays; default: a temporary folder, which is removed
 * KAFKA_PROPERTIES   lines for the broker's settings, of which later ones win; from the jars only
 * --classpath        only prints the class path of the jars, for Kafka's own tools
 * --remove           removes what KAFKA_DATA_DIR holds
 */

const DEFAULT_VERSION = '4.3.1';
const READY_LIMIT_MS = 60_000;

const version = process.env.KAFKA_VERSION || DEFAULT_VERSION;
const before4 = version.startsWith('3.');

try {
  if (!/^[34]\.\d+\.\d+$/.test(version))
    fail(`KAFKA_VERSION=${version} is not a release like ${DEFAULT_VERSION}.`);
  if (process.argv.includes('--classpath')) console.log(join(fetchJars(), '*'));
  else if (process.argv.includes('--remove')) await remove();
  else await run((await fromJars()) ?? (await fromImage()));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}

/**
 * The folder of the jars. They are fetched once, into a temporary folder that is renamed at the end, so an interrupted
 * fetch never looks complete.
 */
function fetchJars() {
  const cache = resolve(process.env.KAFKA_CACHE_DIR || join(homedir(), '.cache', 'colloquy'));
  const folder = join(cache, `kafka-${version}`);
  if (existsSync(folder)) return folder;
  requireProgram('mvn', ['-v'], 'Maven (the program mvn) is needed to fetch Kafka.');
  console.error(`Fetching Apache Kafka ${version} through Maven into ${folder} …`);
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'fetching-'));
  try {
    // Kafka's POM does not include a logging binding, and without one Kafka logs nothing.
    const binding = before4
      ? dependency('org.slf4j', 'slf4j-reload4j', '1.7.36')
      : dependency('org.apache.logging.log4j', 'log4j-slf4j-impl', '2.25.4');
    writeFileSync(
      join(work, 'pom.xml'),
      `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
       <groupId>colloquy</groupId><artifactId>kafka</artifactId><version>1</version><dependencies>
       ${binding}
       ${dependency('org.apache.kafka', 'kafka_2.13', version)}
       ${dependency('org.apache.kafka', 'kafka-tools', version)}
       </dependencies></project>`,
    );
    const { status } = spawnSync(
      'mvn',
      ['-q', '-B', 'dependency:copy-dependencies', '-DincludeScope=runtime', '-DoutputDirectory=libs'],
      { cwd: work, stdio: ['ignore', 2, 2] },
    );
    if (status !== 0) fail(`Kafka ${version} could not be fetched; see above.`);
    try {
      renameSync(join(work, 'libs'), folder);
    } catch (error) {
      // Another process has fetched the same jars meanwhile.
      if (!existsSync(folder)) throw error;
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return folder;
}

function dependency(group, artifact, release) {
  return `<dependency><groupId>${group}</groupId><artifactId>${artifact}</artifactId><version>${release}</version></dependency>`;
}

/** The folder of the broker's data, and whether it is kept at the end. */
function dataFolder() {
  const given = process.env.KAFKA_DATA_DIR;
  const home = given ? resolve(given) : mkdtempSync(join(tmpdir(), 'colloquy-kafka-'));
  mkdirSync(home, { recursive: true });
  return { home, isKept: Boolean(given) };
}

/** A broker from the jars; undefined where Java or Maven is missing and Docker is installed. */
async function fromJars() {
  let jars;
  try {
    jars = fetchJars();
    requireProgram('java', ['-version'], 'Java 17 or newer is needed to run Kafka.');
  } catch (error) {
    if (!hasDocker()) throw error;
    console.error(`${error.message} Docker is here: its image is taken.`);
    return undefined;
  }
  const { home, isKept } = dataFolder();
  const port = Number(process.env.KAFKA_PORT) || (await freePort());
  const config = writeConfig(home, port, await freePort());

  const java = ['-Xms128m', '-Xmx512m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1', ...logging(home)];
  const program = ['-cp', join(jars, '*')];
  // Existing data keeps the id of its cluster.
  if (!existsSync(join(home, 'data', 'meta.properties'))) {
    const id = randomBytes(16).toString('base64url');
    // An id may begin with a hyphen. As a separate argument it would be taken for an option.
    const format = ['kafka.tools.StorageTool', 'format', `--cluster-id=${id}`, '-c', config];
    const formatted = spawnSync('java', [...java, ...program, ...format], { encoding: 'utf8' });
    if (formatted.status !== 0) {
      if (!isKept) rmSync(home, { recursive: true, force: true });
      fail(`Kafka's storage could not be formatted:\n${formatted.stdout}${formatted.stderr}`);
    }
  }
  return {
    home,
    port,
    command: ['java', ...java, ...program, 'kafka.Kafka', config],
    env: process.env,
    cleanUp: `kill -9 "$1" 2>/dev/null; ${isKept ? ':' : 'rm -rf "$2"'}`,
  };
}

function hasDocker() {
  return spawnSync('docker', ['compose', 'version'], { stdio: 'ignore' }).status === 0;
}

/**
 * A broker in a container. The name of its Compose project, and with it that of its volume, is derived from the data
 * folder.
 */
async function fromImage() {
  const { home, isKept } = dataFolder();
  const port = Number(process.env.KAFKA_PORT) || (await freePort());
  const compose = composeOf(home);
  const env = {
    ...process.env,
    KAFKA_VERSION: version,
    KAFKA_PORT: String(port),
    KAFKA_CONTROLLER_PORT: String(port === 9093 ? 9094 : 9093),
  };
  // The image is fetched first, because the time limit for the start does not allow for it.
  const { status } = spawnSync('docker', [...compose, 'pull', '-q'], { env, stdio: ['ignore', 2, 2] });
  if (status !== 0) fail(`The image of Kafka ${version} could not be fetched; see above.`);
  const down = `docker ${compose.map((part) => `'${part}'`).join(' ')} down${isKept ? '' : ' -v'} >/dev/null 2>&1`;
  return {
    home,
    port,
    command: ['docker', ...compose, 'up', '--no-color', '--no-log-prefix'],
    env,
    cleanUp: `${down}; ${isKept ? ':' : 'rm -rf "$2"'}`,
  };
}

function composeOf(home) {
  const name = createHash('sha256').update(home).digest('hex').slice(0, 12);
  return ['compose', '-p', `colloquy-kafka-${name}`, '-f', join(import.meta.dirname, '../docker/kafka.yml')];
}

async function remove() {
  const { home, isKept } = dataFolder();
  if (!isKept) fail('--remove needs KAFKA_DATA_DIR.');
  const env = { ...process.env, KAFKA_VERSION: version, KAFKA_PORT: '0', KAFKA_CONTROLLER_PORT: '0' };
  if (hasDocker()) spawnSync('docker', [...composeOf(home), 'down', '-v'], { env, stdio: 'ignore' });
  rmSync(home, { recursive: true, force: true });
}

async function run({ home, port, command: [program, ...options], env, cleanUp }) {
  // The broker runs in a session of its own, so that Ctrl-C in a terminal reaches only this process, which then shuts
  // the broker down in order.
  const broker = spawn(program, options, { detached: true, env, stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = new Promise((resolveEnd) => {
    broker.once('error', (error) => resolveEnd(error.message));
    broker.once('close', (code, signal) => resolveEnd(signal ?? `exit code ${code}`));
  });
  // When this process ends, even by kill -9, the pipe closes, and the janitor ends the broker and removes its data.
  const janitor = spawn('sh', ['-c', `cat >/dev/null; ${cleanUp}`, 'sh', String(broker.pid), home], {
    cwd: '/',
    detached: true,
    env,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  const cleanedUp = new Promise((resolveEnd) => janitor.once('exit', resolveEnd));

  const log = createWriteStream(join(home, 'server.log'), { flags: 'a' });
  const lastLines = [];
  let ready = false;
  const limit = setTimeout(() => broker.kill('SIGKILL'), READY_LIMIT_MS);
  for (const stream of [broker.stdout, broker.stderr]) {
    createInterface(stream).on('line', (line) => {
      log.write(`${line}\n`);
      lastLines.push(line);
      if (lastLines.length > 40) lastLines.shift();
      if (ready || !line.includes('Kafka Server started')) return;
      ready = true;
      clearTimeout(limit);
      console.log(
        `Apache Kafka ${version} is running; its log: ${join(home, 'server.log')}. Ctrl-C ends it.`,
      );
      console.log(`KAFKA_BROKERS=127.0.0.1:${port}`);
    });
  }

  let isStopping = false;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      // The first Ctrl-C shuts the broker down in order, and a second one kills it.
      broker.kill(isStopping ? 'SIGKILL' : 'SIGTERM');
      isStopping = true;
    });
  }
  const reason = await ended;
  clearTimeout(limit);
  log.end();
  janitor.stdin.end();
  await cleanedUp;
  if (!isStopping) {
    console.error(lastLines.join('\n'));
    fail(`Kafka ${ready ? 'ended by itself' : 'did not start'} (${reason}).`);
  }
}

function writeConfig(home, port, controllerPort) {
  const file = join(home, 'server.properties');
  writeFileSync(
    file,
    `process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controllerPort}
advertised.listeners=PLAINTEXT://127.0.0.1:${port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@127.0.0.1:${controllerPort}
log.dirs=${join(home, 'data')}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
${before4 ? '' : 'share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n'}group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size=2097152
${process.env.KAFKA_PROPERTIES ?? ''}
`,
  );
  return file;
}

/** The settings of the broker's log: warnings, and the one line that says that the broker is ready. */
function logging(home) {
  const file = join(home, 'log.properties');
  if (before4) {
    writeFileSync(
      file,
      `log4j.rootLogger=WARN, out
log4j.logger.kafka.server.KafkaRaftServer=INFO
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %p %m (%c)%n
`,
    );
    return [`-Dlog4j.configuration=file:${file}`];
  }
  writeFileSync(
    file,
    `rootLogger.level=WARN
rootLogger.appenderRef.out.ref=out
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=INFO
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n
`,
  );
  return [`-Dlog4j2.configurationFile=${file}`];
}

function freePort() {
  return new Promise((resolvePort, reject) => {
    const probe = createServer().once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address();
      probe.close(() => resolvePort(port));
    });
  });
}

function requireProgram(name, options, message) {
  const { error, status, stderr } = spawnSync(name, options, { encoding: 'utf8' });
  if (error !== undefined || status !== 0) fail(message);
  // For example `openjdk version "17.0.15"`. Java 8 reports "1.8".
  const [, major] = /version "(\d+)/.exec(name === 'java' ? stderr : '') ?? [];
  if (major !== undefined && Number(major) < 17) fail(`${message} This is Java ${major}.`);
}

function fail(message) {
  throw new Error(message);
}
