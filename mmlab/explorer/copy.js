// Shows the code, selects it, and copies it where the browser allows that.
const code = this.parentNode.querySelector("pre");
code.hidden = false;
getSelection().selectAllChildren(code);
navigator.clipboard?.writeText(code.textContent).then(() => {this.textContent = "Copied"});
