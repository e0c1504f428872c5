import { NoteSigner, verifierKey } from '../../../src/proof/signed-note.js';

// The example of Go's golang.org/x/mod/sumdb/note, which the specification of signed notes was made from.
const NAME = 'PeterNeumann';
const PRIVATE = 'AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz';
const VERIFIER = 'PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW';
const TEXT =
  'If you think cryptography is the answer to your problem,\n' +
  "then you don't know what your problem is.\n";
const SIGNATURE =
  '— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n';

it('given the key of the known example, when its text is signed, then key, id and signature are the known ones', () => {
  const signer = new NoteSigner(NAME, Buffer.from(PRIVATE, 'base64').subarray(1));
  expect(verifierKey(NAME, signer.publicKey)).toBe(VERIFIER);
  expect(signer.id).toBe('c74f20a3');
  expect(signer.sign(TEXT)).toBe(`${TEXT}\n${SIGNATURE}`);
});
