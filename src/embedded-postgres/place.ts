import { constants } from 'node:fs';
import { access, chown, mkdir, rmdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type Account, canUse, ownerOf, unprivilegedAccount } from './account.js';
import { chooseBinaries } from './binaries.js';
import { exists } from './files.js';
import { locationFile, makeMovedFolder, movedHomeOf, readLocation, SYSTEM_FOLDER } from './moved-data.js';

/** Where the files of a database are, and with which binaries and as which user its server runs. */
export interface Place {
  /** Holds `data`, `password` and `server.log`. */
  readonly home: string;
  /** The folder of the cluster, which holds `PG_VERSION`. */
  readonly cluster: string;
  /** Holds `bin`, `lib`, `share`. */
  readonly binaries: string;
  /** The user that the server runs as; undefined for the user of this process. */
  readonly account: Account | undefined;
  /** Sentences for the user. */
  readonly notes: readonly string[];
}

/**
 * Chooses where the data of a data folder is or will be: in the folder itself, unless this process is root and the
 * account that PostgreSQL has to run as cannot reach it.
 * @param dataDir an absolute path without symbolic links
 * @throws Error with a message for the user when the data cannot be reached or is not where it was
 */
export async function choosePlace(dataDir: string): Promise<Place> {
  const inPlace = join(dataDir, 'postgres');
  const elsewhere = movedHomeOf(dataDir);
  const pointer = await readLocation(dataDir);

  if (process.getuid?.() !== 0) {
    if (pointer !== undefined) {
      throw new Error(
        `The data of ${dataDir} is at ${pointer}, where a start as root put it. Start as root again, or name ` +
          'another folder with COLLOQUY_DATA_DIR.',
      );
    }
    await mkdir(inPlace, { recursive: true, mode: 0o700 });
    await access(inPlace, constants.R_OK | constants.W_OK | constants.X_OK).catch(() => {
      throw new Error(
        `${inPlace} belongs to another user. Start as that user, or name another folder with COLLOQUY_DATA_DIR.`,
      );
    });
    const notes: string[] = [];
    const binaries = await chooseBinaries(undefined, dataDir, notes);
    return { home: inPlace, cluster: join(inPlace, 'data'), binaries, account: undefined, notes };
  }

  const notes: string[] = [];
  let home = inPlace;
  let account: Account;
  if (await exists(join(inPlace, 'data'))) {
    account = await ownerOf(join(inPlace, 'data'));
    if (!(await canUse(account, join(inPlace, 'data')))) {
      // An empty database in another place would look like the loss of all data.
      throw new Error(
        `PostgreSQL has to run as ${account.name}, who cannot reach its data in ${inPlace}. Let other users pass ` +
          'through the folders above it (chmod o+x), or name another folder with COLLOQUY_DATA_DIR.',
      );
    }
  } else if (pointer !== undefined && pointer !== elsewhere) {
    throw new Error(
      `${dataDir} was moved or copied: its data is at ${pointer}. If it was moved, stop Colloquy, rename ` +
        `${dirname(pointer)} to ${dirname(elsewhere)} and delete ${locationFile(dataDir)}.`,
    );
  } else if (await exists(join(elsewhere, 'data'))) {
    home = elsewhere;
    account = await ownerOf(join(elsewhere, 'data'));
  } else if (pointer !== undefined) {
    throw new Error(
      `The data of ${dataDir} was at ${pointer} and is gone. Put it back, or delete ${locationFile(dataDir)} to ` +
        'begin with an empty database.',
    );
  } else {
    account = await unprivilegedAccount();
    await makeHome(inPlace, account);
    if (!(await canUse(account, inPlace))) {
      await rmdir(inPlace).catch(() => undefined);
      home = elsewhere;
      await makeMovedFolder(dataDir);
      await makeHome(elsewhere, account);
    }
  }
  if (home !== inPlace) {
    notes.push(
      `PostgreSQL does not run as root; it runs as ${account.name}, who cannot reach ${dataDir}, so the data is in ${home}. "colloquy data" lists such places.`,
    );
  }
  const binaries = await chooseBinaries(account, SYSTEM_FOLDER, notes);
  return { home, cluster: join(home, 'data'), binaries, account, notes };
}

async function makeHome(home: string, account: Account): Promise<void> {
  await mkdir(home, { recursive: true, mode: 0o700 });
  await chown(home, account.uid, account.gid);
}
