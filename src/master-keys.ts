import { Logger } from '@nestjs/common';
import { type Config } from './config.js';
import { connect } from './database/connection.js';
import {
  isMasterKeyFileOpen,
  makeMasterKeyFile,
  masterKeyFile,
  readMasterKeyFile,
} from './embedded-postgres/master-key-file.js';
import { checkMasterKeys, mastersOf } from './event-store/sealing/master-key-use.js';
import { MasterKeyRefused, MasterKeys } from './event-store/sealing/master-keys.js';

/**
 * The master keys of an embedded database: those of the settings, then those of its file, which is made when there are
 * neither and nothing is sealed yet. Nothing is written when they are not those of the database.
 * @param url of the database, which need not be migrated
 * @throws MasterKeyRefused
 */
export async function embeddedMasterKeys(
  { dataDir, masterKeys: given = [] }: Config['storage'],
  url: string,
): Promise<string[]> {
  const client = await connect(url, 'master keys');
  try {
    let ofFile = await readMasterKeyFile(dataDir);
    if (given.length === 0 && ofFile.length === 0 && (await mastersOf(client)).length === 0) {
      await makeMasterKeyFile(dataDir);
      // Not necessarily the one that was made here.
      ofFile = await readMasterKeyFile(dataDir);
    }
    if (await isMasterKeyFileOpen(dataDir))
      new Logger('master key').warn(`Others may read ${masterKeyFile(dataDir)}: chmod 600 ends that.`);
    const masterKeys = [...given, ...ofFile];
    await checkMasterKeys(client, keysOf(masterKeys, masterKeyFile(dataDir)));
    return masterKeys;
  } finally {
    await client.end();
  }
}

/**
 * Checks the master keys of the settings against a database, before it is migrated.
 * @throws MasterKeyRefused
 */
export async function checkMasterKeysOf(url: string, masterKeys: readonly string[] = []): Promise<void> {
  const client = await connect(url, 'master keys');
  try {
    await checkMasterKeys(client, new MasterKeys(masterKeys));
  } finally {
    await client.end();
  }
}

function keysOf(texts: readonly string[], file: string): MasterKeys {
  try {
    return new MasterKeys(texts);
  } catch (error) {
    throw new MasterKeyRefused(`${file}: ${(error as Error).message}, one a line`);
  }
}
