import { type LoggerService } from '@nestjs/common';
import { destination, type Logger as PinoLogger, pino, symbols } from 'pino';
import pretty from 'pino-pretty';

export const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/**
 * Bytes of lines that are written together. A write for each line would be felt on every request: it wakes a thread of
 * this process and the process that reads the lines.
 */
const GATHERED_BYTES = 32 * 1024;
/** A line waits at most so long for others. */
const FLUSH_MS = 250;
/** Bytes of a character of a text, at most. */
const CHARACTER_BYTES = 3;

/**
 * Lines on their way to a stream. pino's own stream gathers as well, and measures all that it holds for each line. They
 * are kept as bytes: texts that are put together survive collections of garbage until they are written.
 */
class GatheredLines {
  private waiting = Buffer.allocUnsafe(GATHERED_BYTES);
  private length = 0;

  /** @param stream takes bytes */
  constructor(private readonly stream: ReturnType<typeof destination>) {}

  write(line: string): void {
    const most = line.length * CHARACTER_BYTES;
    if (most > GATHERED_BYTES - this.length) this.flush();
    if (most > GATHERED_BYTES) this.send(Buffer.from(line));
    else this.length += this.waiting.write(line, this.length);
  }

  flush(): void {
    if (this.length === 0) return;
    this.send(this.waiting.subarray(0, this.length));
    // The stream writes later what it was given.
    this.waiting = Buffer.allocUnsafe(GATHERED_BYTES);
    this.length = 0;
  }

  flushSync(): void {
    this.flush();
    this.stream.flushSync();
  }

  private send(bytes: Buffer): void {
    this.stream.write(bytes as unknown as string);
  }
}

/**
 * The log of the process: JSON lines on standard output, or text for people where that is a terminal. A line holds ids,
 * names, figures and stacks; never what people or models wrote, and never a key.
 * @param fd 1: standard output, 2: standard error
 */
export function createLogger(level: LogLevel, fd: 1 | 2 = 1): PinoLogger {
  const options = {
    level,
    // The host is known to whoever collects the lines.
    base: { pid: process.pid },
    timestamp: timeOfLines(),
    formatters: { level: (label: string) => ({ level: label }) },
  };
  const { isTTY } = fd === 1 ? process.stdout : process.stderr;
  if (isTTY) return pino(options, pretty({ ignore: 'pid', sync: true, destination: fd }));
  // Few lines go to standard error, and each may be the last one.
  if (fd === 2) return pino(options, destination({ fd, sync: true }));
  const lines = new GatheredLines(destination({ fd, sync: false, contentMode: 'buffer' }));
  setInterval(() => {
    lines.flush();
  }, FLUSH_MS).unref();
  const logger = pino(options, lines);
  process.once('exit', () => {
    flushLog(logger);
  });
  return logger;
}

/** The time as pino puts it into a line. Under load many lines have the same millisecond, and to write it anew takes long. */
function timeOfLines(): () => string {
  let at = 0;
  let text = '';
  return () => {
    const now = Date.now();
    if (now !== at) {
      at = now;
      text = `,"time":"${new Date(now).toISOString()}"`;
    }
    return text;
  };
}

/** What of pino makes a line. */
interface Inside {
  readonly [symbols.streamSym]: { write(line: string): void };
  readonly [symbols.lsCacheSym]: Record<number, string>;
  readonly [symbols.timeSym]: () => string;
  readonly [symbols.chindingsSym]: string;
}

/**
 * Writes lines whose fields are JSON already, as pino would. pino looks at each field of each line anew, which is felt
 * where a line is written for each request.
 * @param fields as they stand in an object, each with a comma before it
 */
export function jsonLines(logger: PinoLogger): (level: 'info' | 'warn', fields: string) => void {
  const inside = logger as unknown as Inside;
  return (level, fields) => {
    if (!logger.isLevelEnabled(level)) return;
    const start = inside[symbols.lsCacheSym][logger.levels.values[level] ?? 0] ?? '';
    inside[symbols.streamSym].write(
      `${start}${inside[symbols.timeSym]()}${inside[symbols.chindingsSym]}${fields}}\n`,
    );
  };
}

/** Writes what still waits; for the moment before the process ends. */
export function flushLog(logger: PinoLogger): void {
  const stream = (logger as unknown as Record<symbol, { flushSync?: () => void }>)[symbols.streamSym];
  try {
    stream?.flushSync?.();
  } catch {
    // The stream had not opened yet: nothing was written to it.
  }
}

/** Nest's own log, and that of all features, as lines of the process's log. */
export class NestLog implements LoggerService {
  constructor(private readonly logger: PinoLogger) {}

  log(message: unknown, ...rest: unknown[]): void {
    // Nest tells at this level how it starts, module by module and route by route.
    this.write('debug', message, rest);
  }
  fatal(message: unknown, ...rest: unknown[]): void {
    this.write('fatal', message, rest);
  }
  error(message: unknown, ...rest: unknown[]): void {
    this.write('error', message, rest);
  }
  warn(message: unknown, ...rest: unknown[]): void {
    this.write('warn', message, rest);
  }
  debug(message: unknown, ...rest: unknown[]): void {
    this.write('debug', message, rest);
  }
  verbose(message: unknown, ...rest: unknown[]): void {
    this.write('trace', message, rest);
  }

  /** @param rest what else was given; the last text in it is the name of the part that speaks */
  private write(level: Exclude<LogLevel, 'silent'>, message: unknown, rest: readonly unknown[]): void {
    const texts = rest.filter((one) => typeof one === 'string');
    const part = texts.at(-1);
    // Each cell has a container of its own, in which there is one.
    if (part === 'DataSourceNameRegistry') return;
    const error = [message, ...rest].find((one) => one instanceof Error);
    const stack = error ? stackOf(error) : texts.slice(0, -1).find((text) => text.includes('\n    at '));
    const fields = { ...(part !== undefined && { part }), ...(stack !== undefined && { stack }) };
    this.logger[level](fields, message instanceof Error ? message.message : String(message));
  }
}

/** Stacks only: other properties of an error may hold texts of people, and keys. */
export function stackOf(error: unknown): string {
  if (!(error instanceof Error)) return 'thrown without a stack';
  const stack = isOfData(error) ? withoutMessage(error) : (error.stack ?? error.message);
  return error.cause instanceof Error ? `${stack}\nCaused by: ${stackOf(error.cause)}` : stack;
}

/** What PostgreSQL says of data that it cannot take quotes that data. */
const isOfData = (error: Error): boolean => {
  const { severity, code } = error as { severity?: unknown; code?: unknown };
  return severity !== undefined && typeof code === 'string' && code.startsWith('22');
};

const withoutMessage = (error: Error): string => {
  const { code = '' } = error as { code?: string };
  const frames = (error.stack ?? '').split('\n').filter((line) => line.startsWith('    at '));
  return [`error: data that PostgreSQL refuses (${code})`, ...frames].join('\n');
};
