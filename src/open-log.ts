import { EventLog, type EventLogOptions } from './event-store/log.js';
import { type Cipher } from './event-store/sealing/ciphers.js';

/** A database of the service, and the keys for what is sealed in it. */
export interface KeyedDatabase {
  readonly url: string;
  /** As `EventLogOptions` has them. */
  readonly masterKeys: readonly string[];
  readonly cipher: Cipher;
}

/**
 * Opens the log of a database. Nobody opens one in another way (a test reads the sources): who forgot the keys would store
 * plain what is to be sealed.
 * @throws MasterKeyRefused
 */
export const openLog = (
  { url, masterKeys, cipher }: KeyedDatabase,
  options: Omit<EventLogOptions, 'masterKeys' | 'cipher' | 'codec'> = {},
): Promise<EventLog> => EventLog.open(url, { ...options, masterKeys, cipher });
